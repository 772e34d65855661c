"""Captures and trained students of a reproduction: everything through `precompute` and `train`.

In: settings, and ways to train. Out: caches and students in the work folder, and what their
records tell. A capture or a run that was stopped is continued; one that is done is not done again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from settings import Settings

import cachekd
from cachekd.config import PrecomputeConfig, TrainConfig
from cachekd.plugins import find

_COUNTS = ("samples", "generated", "tokens", "targets", "entries", "bytes", "attention_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to train the student, a row of the table.

    Attributes:
        name: of the row.
        family: ways of one family share a learning rate, chosen with the first of them.
        objective: plugin; None leaves the student as it is.
        options: of the objective.
        caches: of each name the cache; none: the live teacher alone scores.
        student: what it starts from; default: the settings' student.
        train: further settings of train.
    """

    name: str
    family: str
    objective: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    caches: Mapping[str, str] = field(default_factory=dict)
    student: str = ""
    train: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Its name as a name of files."""
        return "".join(char if char.isalnum() else "-" for char in self.name)


def capture(settings: Settings, name: str, **changes: Any) -> tuple[str, dict[str, Any]]:
    """Capture the training data, or other data, in the work folder.

    Args:
        settings: teacher, data and sizes.
        name: of the cache.
        **changes: settings of precompute that are others for this cache.

    Returns:
        The cache's location, and counts of what it holds.
    """
    location = Path(settings.work) / "caches" / name
    values = {
        "teacher": settings.teacher,
        "data": settings.data,
        "split": settings.split,
        "columns": settings.columns,
        "max_samples": settings.samples,
        "max_length": settings.max_length,
        "on_long": "skip",
        "on_bad": "skip",
        "cache": str(location),
        **settings.precompute,
        **changes,
    }
    report = cachekd.precompute(PrecomputeConfig(**values))
    return str(location), {name: report[name] for name in _COUNTS if name in report}


def trained(settings: Settings, way: Way, seed: int, rate: float) -> tuple[Path, dict[str, Any]]:
    """The student of a way, and of the record of its run what a table may tell."""
    start = way.student or settings.student
    if way.objective is None:
        return Path(start), {"steps": 0}
    out = Path(settings.work) / "students" / f"{way.folder}-{seed}-{rate:g}"
    record = _done(out)
    if record is None:
        record = cachekd.train(TrainConfig(**_settings(settings, way, seed, rate, out, start)))
        shutil.rmtree(out / "scores", ignore_errors=True)
    rollouts = record["rollouts"] or {}
    return out, {
        "steps": record["steps"],
        "training_seconds": round(record["throughput"]["training_seconds"], 1),
        "seconds_of_parts": rollouts.get("seconds", {}),
        "last": next((row for row in reversed(record["history"]) if "loss" in row), {}),
    }


def _done(out: Path) -> dict[str, Any] | None:
    """The record of a run that ended; None where there is none."""
    if not (out / "run.json").exists():
        return None
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return record if record["status"] == "done" else None


def _settings(
    settings: Settings, way: Way, seed: int, rate: float, out: Path, start: str
) -> dict[str, Any]:
    """Settings of `train`; the data is read only where no cache holds it."""
    assert way.objective is not None, "there is something to train"
    options = dict(way.options)
    if hasattr(find("objectives", way.objective).Options, "max_new_tokens"):
        options.setdefault("max_new_tokens", settings.max_new_tokens)
    live: dict[str, Any] = {
        "teacher": settings.teacher,
        "data": settings.data,
        "split": settings.split,
        "columns": settings.columns,
        "max_samples": settings.samples,
        "on_long": "skip",
        "on_bad": "skip",
        **settings.live,
    }
    return {
        **({} if way.caches else live),
        "cache": tuple(f"{name}={place}" for name, place in way.caches.items()),
        "student": start,
        "objective": way.objective,
        "objective_options": options,
        "output_dir": str(out),
        "max_length": settings.max_length,
        **settings.train,
        **way.train,
        "training": {
            "max_steps": settings.steps,
            "per_device_train_batch_size": settings.batch_size,
            "learning_rate": rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": max(1, settings.steps // 20),
            "logging_steps": max(1, settings.steps // 10),
            "save_strategy": "no",
            "disable_tqdm": True,
            "report_to": "none",
            **settings.training,
            "seed": seed,
            "resume_from_checkpoint": True,
        },
    }
