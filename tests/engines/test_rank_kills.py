"""A rank that is killed at work: what it had is done by the other, or by a later run."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import faulty_teachers
import pytest
from forking import Forked, command
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.store import disk


@pytest.mark.reliability
@pytest.mark.parametrize("locks", [True, False])
def test_a_killed_rank_loses_nothing(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    """With locks the other rank does all; without, the next run does what is left."""
    data, cache = write_rows(tmp_path / "data.jsonl", chat_rows(60)), tmp_path / "cache"
    faults = tmp_path / "faults"
    faults.mkdir()
    monkeypatch.setenv(faulty_teachers.FOLDER, str(faults))
    if not locks:
        monkeypatch.setattr(disk, "try_lock_bytes", lambda *_: None)
    flags = ["precompute", "--teacher", family.teacher, "--data", data, "--threads", 1, "--json"]
    flags += ["--unit-tokens", 200, "--batch-tokens", 100, "--codec", "plain", "--cache", cache]
    flags += ["--backend", "faulty_teachers:Faulty", "--world-size", 2]
    ranks = [Forked(command(*flags, "--rank", n), tmp_path / f"rank-{n}") for n in (0, 1)]
    ranks[0].until(lambda: len(list((cache / "units").glob("*.json"))) >= 2)
    ranks[0].until((faults / f"at-work-{ranks[0].pid}").exists)
    ranks[0].send(signal.SIGKILL)
    assert ranks[0].end().code == -signal.SIGKILL
    other = ranks[1].end()
    assert other.code == 0, other.err
    report = json.loads(other.out)
    assert report["sealed"] == locks and (locks or report["units_left_to_others"])

    def alone(place: Path) -> str:
        config = PrecomputeConfig(
            teacher=str(family.teacher),
            backend="dummy",
            codec="plain",
            data=(str(data),),
            cache=str(place),
            threads=1,
            unit_tokens=200,
            batch_tokens=100,
        )
        return str(cachekd.precompute(config)["root"])

    assert alone(tmp_path / "calm") == (report["root"] if locks else alone(cache))
