"""A small capture that tests disturb: its settings, its frozen job and its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import Family

import cachekd
from cachekd import PrecomputeConfig
from cachekd.capture.attention import AttendingTeacher
from cachekd.capture.job import Job
from cachekd.capture.prepare import prepare_job
from cachekd.plugins import find
from cachekd.teachers import Teacher

BACKENDS = ("dummy", "hf")


def config(family: Family, data: Path, cache: Path, **further: Any) -> PrecomputeConfig:
    settings = {
        "threads": 1,
        "unit_tokens": 200,
        "batch_tokens": 100,
        "logits_values": "float32",
        "writers": 0,
    }
    return PrecomputeConfig(
        teacher=str(family.teacher), data=(str(data),), cache=str(cache), **{**settings, **further}
    )


def loaded(settings: PrecomputeConfig) -> tuple[Job, Teacher]:
    job = prepare_job(settings)
    teacher: Teacher = find("teachers", settings.backend).load(job.config, job.facts, 1)
    if job.attention is not None:
        teacher = AttendingTeacher(teacher, job.attention, job.attention_wanted)
    return job, teacher


def records(cache: Path) -> list[Any]:
    return list(cachekd.open_cache(str(cache)))
