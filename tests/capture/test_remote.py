"""A worker that has none of the run's data: what it compares, and what it tells."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Family, chat_rows, write_rows

from cachekd import PrecomputeConfig
from cachekd.capture import remote
from cachekd.capture.job import Job
from cachekd.capture.prepare import prepare_job
from cachekd.capture.remote import Opening, SentWorker, opening_of, samples_of
from cachekd.capture.scoring import write_plan
from cachekd.errors import MismatchError
from cachekd.store.retries import count
from cachekd.teachers import Teacher


@pytest.fixture
def opening(family: Family, copy_of: Callable[[Path, str], Path], tmp_path: Path) -> Opening:
    """Of a run whose teacher a test may change."""
    return opening_of(
        prepare_job(
            PrecomputeConfig(
                teacher=str(copy_of(family.teacher, "teacher")),
                data=(str(write_rows(tmp_path / "data.jsonl", chat_rows(4))),),
                cache=str(tmp_path / "cache"),
                threads=1,
            )
        )
    )


def change(path: Path, act: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text())
    act(value)
    path.write_text(json.dumps(value))


def other_configuration(folder: Path) -> None:
    change(folder / "config.json", lambda value: value.update(rms_norm_eps=0.5))


def other_tokenizer(folder: Path) -> None:
    change(folder / "tokenizer.json", lambda value: value["added_tokens"][0].update(lstrip=True))


def other_weights(folder: Path) -> None:
    shutil.copy(folder.parent / "student.safetensors", folder / "model.safetensors")


@pytest.mark.parametrize(
    ("act", "named"),
    [
        (other_configuration, ["source.config.rms_norm_eps: 1e-06 / 0.5"]),
        (other_tokenizer, ["source.tokenizer: "]),
        (other_weights, ["source.weights: "]),
    ],
)
def test_another_teacher_on_a_machine_is_refused_and_what_differs_is_named(
    family: Family, opening: Opening, tmp_path: Path, act: Callable[[Path], None], named: list[str]
) -> None:
    """All that a source id is made of counts: each of these gives other targets."""
    shutil.copy(family.student / "model.safetensors", tmp_path / "student.safetensors")
    act(Path(opening.config.teacher))
    with pytest.raises(MismatchError, match="Give all machines the same files") as refused:
        SentWorker().load(opening)
    lines = str(refused.value).splitlines()[1:-1]
    assert len(lines) == len(named)
    for line, start in zip(lines, named, strict=True):
        assert line.strip().startswith(start)


def test_what_says_only_how_a_teacher_was_saved_may_differ(opening: Opening) -> None:
    folder = Path(opening.config.teacher)
    change(folder / "config.json", lambda value: value.update(transformers_version="4.0.0"))
    SentWorker().load(opening)


def test_what_happened_is_told_with_the_next_unit(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what was before the first unit, and in one that failed."""
    log, load = logging.getLogger("cachekd.teachers.made_up"), remote.load_teacher

    def warned(job: Job) -> Teacher:
        log.warning("logits of whole %s are made", "batches")
        return load(job)

    monkeypatch.setattr(remote, "load_teacher", warned)
    job = prepare_job(opening.config)
    write_plan(job)
    opening = opening_of(job)
    worker = SentWorker()
    worker.begin(opening)
    count("retries", 2)
    with pytest.raises(KeyError):
        worker.do(0, {})
    count("retries")
    told = worker.do(0, samples_of(job, [0]))
    assert told.happened == {"retries": 3}
    assert told.warnings == ["logits of whole batches are made"]
    told = worker.do(0, samples_of(job, [0]))
    assert not told.happened and not told.warnings
