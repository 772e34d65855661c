"""A clock that is a year off changes no byte, and nobody's right to write."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from forking import Forked, command
from tiny import Family

ROOT = Path(__file__).parents[1]
CONTENT = ("logits", "samples", "plans", "priors", "index")


def test_waits_and_limits_are_measured_on_a_clock_that_cannot_jump() -> None:
    """What tells the time of day is written down, never compared."""
    forbidden = re.compile(r"\btime\.time\(|utcnow\(|from time import (?!monotonic)|\bctime\(")
    for path in [*(ROOT / "cachekd").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]:
        assert forbidden.search(path.read_text()) is None, path


def faked(offset: str, *args: object) -> list[str]:
    """The command line under another clock."""
    if shutil.which("faketime") is None:
        pytest.skip("faketime is not installed, so the clock cannot be set for one process")
    return ["faketime", "-m", "-f", offset, sys.executable, "-m", "cachekd_cli", *map(str, args)]


@pytest.mark.reliability
@pytest.mark.timeout(900)  # two new processes
def test_a_cache_begun_in_a_year_and_continued_two_years_before_is_the_same(
    family: Family, data: Path, tmp_path: Path
) -> None:
    def flags(cache: Path) -> tuple[object, ...]:
        return (
            *("precompute", "--teacher", family.teacher, "--backend", "dummy", "--data", data),
            *("--cache", cache, "--threads", 1, "--unit-tokens", 100, "--batch-tokens", 100),
        )

    def run(offset: str, cache: Path, *further: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            faked(offset, *flags(cache), *further), capture_output=True, text=True
        )

    first, second = tmp_path / "first", tmp_path / "second"
    assert run("+1y", first, "--no-seal").returncode == 0
    shards = sorted((first / "logits").glob("*.parquet"))
    for path in shards[::2]:  # so much is still to be done
        path.unlink()
    # Of another host, whose writer may live: by the filesystem's clock one is new and one is old.
    new, old = (first / "logits" / f".tmp-00000000-{name * 32}" for name in "ab")
    for path in (new, old):
        path.write_bytes(b"")
    os.utime(old, (old.stat().st_atime, old.stat().st_mtime - 2 * 24 * 3600))
    continued = run("-1y", first)
    assert continued.returncode == 0, continued
    assert new.exists() and not old.exists()
    new.unlink()
    assert Forked(command(*flags(second)), tmp_path / "log").end().code == 0
    left, right = (
        {
            f"{folder}/{path.name}": path.read_bytes()
            for folder in CONTENT
            for path in (cache / folder).glob("*")
        }
        for cache in (first, second)
    )
    assert left == right and len(left) > 5
