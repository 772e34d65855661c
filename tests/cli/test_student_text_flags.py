"""On-policy objectives whose share is 0 need no live teacher: flags to a student, from a cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from runs import capture
from tiny import Family, Ran


def test_gkd_without_a_share_is_jsd(
    cachekd: Callable[..., Ran], family: Family, data: Path, tmp_path: Path
) -> None:
    capture(family, data, tmp_path / "cache")
    flags = ["--cache", tmp_path / "cache", "--student", family.student, "--use-cpu", "true"]
    flags += ["--max-steps", 2, "--logging-steps", 1, "--json", "--beta", 0.3, "--loss", "kd=1"]
    runs = {}
    for name, more in (("gkd", ["--lmbda", 0]), ("jsd", [])):
        out = ["--output-dir", tmp_path / name]
        done = cachekd("train", *flags, "--objective", name, *more, *out)
        assert done.code == 0, done.err
        runs[name] = done.json["history"]
    for gkd, jsd in zip(runs["gkd"][:2], runs["jsd"][:2], strict=True):
        assert gkd["loss"] == pytest.approx(jsd["loss"]) and gkd["loss"] > 0
        assert gkd["jsd"] == pytest.approx(jsd["jsd"]) and gkd["student_share"] == 0
        assert gkd["ce"] == pytest.approx(jsd["ce"])
