"""Refusals of the command line, as several tests of bad input expect them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import Family, Ran

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
