"""Refusals of the command line, and a small cache that tests may copy and damage."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doors import REACHED, WIDTH, World, captured
from runs import capture
from tiny import Family, Ran, chat_rows, save_model, write_rows

Run = Callable[..., Ran]


@pytest.fixture
def refused(
    cachekd: Run, family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs precompute, expects a refusal before the model is loaded, and gives its message."""

    def run(*further: object, code: int = 1, loads: bool = False, **replaced: object) -> str:
        from cachekd.teachers.hf import HFTeacher

        if not loads:
            monkeypatch.setattr(
                HFTeacher, "load", lambda *args: pytest.fail("the model was loaded")
            )
        cache = tmp_path / "cache"
        options = {"teacher": family.teacher, "data": data, "cache": cache, **replaced}
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        before = {path for path in tmp_path.rglob("*") if "digests" not in str(path)}
        ran = cachekd("precompute", *flags, *further)
        assert ran.code == code, ran.err
        assert ran.out == ""
        assert ran.err.count("\n") <= 12 and "Traceback" not in ran.err
        after = {path for path in tmp_path.rglob("*") if "digests" not in str(path)}
        assert after == before, "something was written"
        return ran.err

    return run


@pytest.fixture(scope="session")
def sealed(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten samples of the dummy teacher in several shards, sealed. Read only."""
    folder = tmp_path_factory.mktemp("sealed")
    rows = chat_rows(9)
    data = write_rows(folder / "data.jsonl", [*rows, rows[0]])
    small = {"logits_top_k": 8, "logits_values": "float16", "unit_tokens": 80, "batch_tokens": 80}
    capture(family, data, folder / "cache", backend="dummy", **small)
    return folder / "cache"


@pytest.fixture
def cache(sealed: Path, tmp_path: Path) -> Path:
    """A copy of it, two folders deep."""
    return Path(shutil.copytree(sealed, tmp_path / "in" / "cache"))


@pytest.fixture(scope="module")
def world(family: Family, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("doors")
    teacher, student = root / "teacher", root / "student"
    for folder, seed in ((teacher, 1), (student, 2)):
        shutil.copytree(family.teacher, folder)
        save_model(folder, WIDTH, width=32, layers=1, seed=seed)
    data = write_rows(root / "data.jsonl", chat_rows(4))
    captured(teacher, data, root / "cache")
    return World(root, data, teacher, student, root / "cache")


@pytest.fixture
def door(
    cachekd: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[..., tuple[Ran, list[str]]]:
    """Runs a command up to the loading of a model; what it said, and its warnings."""

    def stop(*args: Any, **kwargs: Any) -> None:
        sys.exit(REACHED)

    def run(*args: object) -> tuple[Ran, list[str]]:
        caplog.clear()
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr("transformers.AutoModelForCausalLM.from_pretrained", stop)
            ran = cachekd(*args)
        return ran, [record.getMessage() for record in caplog.records]

    return run
