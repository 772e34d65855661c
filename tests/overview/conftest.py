"""Caches and runs that pages are made of; read only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from overview_cases import CAPTURE, HOSTILE, TEXTS
from runs import TRAINING, capture
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd.config import RecheckConfig, ReportConfig
from cachekd.overview.cache import cache_report


@pytest.fixture(scope="session")
def captured(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three domains, hostile text, several shards; exact heads of a teacher without a model."""
    folder = tmp_path_factory.mktemp("overview")
    rows = [{**row, "domain": "abc"[i % 2]} for i, row in enumerate(chat_rows(24))]
    rows += [{"instruction": "say", "output": text * 2, "domain": HOSTILE} for text in TEXTS]
    data = write_rows(folder / "data.jsonl", rows)
    capture(family, data, folder / "cache", domain_column="domain", **CAPTURE)
    return folder / "cache"


@pytest.fixture(scope="session")
def report(captured: Path, family: Family) -> dict[str, Any]:
    """The figures of that cache, with its teacher and all records."""
    teacher = RecheckConfig(teacher=str(family.teacher), backend="dummy")
    config = ReportConfig(paths=(str(captured),), teacher_sample=6, recheck=teacher)
    return cache_report(config)


@pytest.fixture(scope="session")
def runs(family: Family, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Three runs of a few steps: two that differ by seed alone, and one of another objective."""
    folder = tmp_path_factory.mktemp("runs")
    for name, first, count in (("cache", 0, 12), ("heldout", 70, 4)):
        data = write_rows(folder / f"{name}.jsonl", chat_rows(count, first))
        capture(family, data, folder / name, **{**CAPTURE, "logits_values": "float16"})
    made = []
    for name, seed, objective in (("one", 1, "kd"), ("two", 2, "kd"), ("plain", 1, "sft")):
        training = {**TRAINING, "max_steps": 4, "logging_steps": 1, "seed": seed}
        training |= {"eval_strategy": "steps", "eval_steps": 2}
        made.append(_trained(family, folder, name, objective, training))
    return tuple(made)


def _trained(
    family: Family, folder: Path, name: str, objective: str, training: dict[str, Any]
) -> Path:
    cachekd.train(
        cachekd.TrainConfig(
            cache=(str(folder / "cache"),),
            eval_cache=str(folder / "heldout"),
            student=str(family.student),
            output_dir=str(folder / name),
            objective=objective,
            training=training,
        )
    )
    return folder / name


@pytest.fixture
def record_of(runs: tuple[Path, ...], tmp_path: Path) -> Callable[..., Path]:
    """Writes a run's record, changed, to a folder of its own."""

    def write(name: str = "run", **changes: Any) -> Path:
        facts = json.loads((runs[0] / "run.json").read_text())
        facts |= changes
        folder = tmp_path / name
        folder.mkdir()
        kept = {key: value for key, value in facts.items() if value is not ...}
        (folder / "run.json").write_text(json.dumps(kept))
        return folder

    return write
