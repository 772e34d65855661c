"""Processes that share a run by rank: who does what, with locks and without, and who seals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tiny import Family, Ran, chat_rows, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.engines._ranks import Share, share_of
from cachekd.errors import CorruptCache, Incomplete
from cachekd.store import disk
from cachekd.store.io import Location
from cachekd.teachers.dummy import DummyTeacher

ARRAY = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "3"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}


def config(family: Family, data: Path, cache: Path, **further: Any) -> PrecomputeConfig:
    settings = {"threads": 1, "unit_tokens": 200, "batch_tokens": 100, "backend": "dummy"}
    return PrecomputeConfig(
        teacher=str(family.teacher), data=(str(data),), cache=str(cache), **{**settings, **further}
    )


@pytest.mark.parametrize(
    ("environment", "given", "expected"),
    [
        ({}, {}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, {}, (2, 4)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, {"rank": 0, "world_size": 2}, (0, 2)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, {"world_size": 1}, (0, 1)),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "3"}, {}, (2, 3)),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_STEP": "2"}, {}, (2, 3)),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "3", **STEP}, {}, (9, 12)),
        (STEP, {}, (1, 4)),
        # A batch script has these too, and is alone unless srun starts it.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, {}, (0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1", **STEP}, {}, (0, 1)),
    ],
)
def test_the_share_that_launchers_name(
    family: Family, environment: dict[str, str], given: dict[str, int], expected: tuple[int, int]
) -> None:
    share = share_of(config(family, Path("d"), Path("c"), **given), environment)
    assert (share.rank, share.world_size) == expected


def test_every_unit_is_the_own_of_one_rank_and_comes_first() -> None:
    shares = [Share(rank=rank, world_size=3) for rank in range(3)]
    orders = [share.order(range(8)) for share in shares]
    assert orders[1] == [1, 4, 7, 5, 2, 6, 3, 0]
    for number in range(8):
        assert [share.owns(number) for share in shares].count(True) == 1
    assert all(sorted(order) == list(range(8)) for order in orders)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem that knows none, as object stores do."""
    monkeypatch.setattr(disk, "try_lock_bytes", lambda *_: None)


@pytest.fixture
def calm(family: Family, data: Path, tmp_path: Path) -> dict[str, Any]:
    """What one process makes."""
    return cachekd.precompute(config(family, data, tmp_path / "calm"))


@pytest.mark.usefixtures("no_locks")
def test_without_locks_each_rank_does_its_share_and_the_last_one_seals(
    family: Family,
    data: Path,
    tmp_path: Path,
    calm: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache, ranks = tmp_path / "cache", []
    for rank in (2, 0, 1):
        ranks.append(cachekd.precompute(config(family, data, cache, rank=rank, world_size=3)))
    first, second, last = ranks
    assert not first["sealed"] and not second["sealed"] and last["sealed"]
    assert first["units_left_to_others"] + 2 > second["units_left_to_others"] > 0
    assert last["root"] == calm["root"] and "units_left_to_others" not in last
    assert len(list((cache / "plans").iterdir())) == 1
    assert "this is rank 2 of 3 by --rank and --world-size" in caplog.text
    assert "the share of rank 0 is done" in caplog.text


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_rank_takes_over_what_others_left_if_told_to(
    family: Family, data: Path, tmp_path: Path, calm: dict[str, Any]
) -> None:
    cache = tmp_path / "cache"
    settings = {"rank": 1, "world_size": 2}
    assert not cachekd.precompute(config(family, data, cache, **settings))["sealed"]
    done = cachekd.precompute(config(family, data, cache, **settings, take_over=True))
    assert done["root"] == calm["root"]


class Meanwhile:
    """Something happens just before the n-th operation on files of plans."""

    def __init__(self, patch: pytest.MonkeyPatch, last: int, act: Callable[[], None]) -> None:
        self.left, self._act = last, act
        for name in ("create", "read", "keep", "remove", "names"):
            patch.setattr(Location, name, self._watched(getattr(Location, name)))

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(location: Location, name: str = "", *args: Any) -> Any:
            if name.startswith("plans"):
                self.left -= 1
                if not self.left:
                    self._act()
            return call(location, name, *args)

        return watched


def killed() -> None:
    raise KeyboardInterrupt


@pytest.mark.reliability
@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("dies", [False, True])
def test_ranks_that_begin_at_once_without_locks_have_one_plan_and_so_has_who_continues(
    family: Family,
    data: Path,
    tmp_path: Path,
    calm: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    dies: bool,
) -> None:
    """The other rank, whose processor has more threads, runs or comes back at every step."""
    step, begun = 0, True
    while begun:
        step += 1
        cache = tmp_path / f"{step}"
        first, other = (
            config(family, data, cache, rank=rank, world_size=2, threads=rank + 1)
            for rank in (0, 1)
        )
        with monkeypatch.context() as patch:
            act = killed if dies else lambda other=other: cachekd.precompute(other)
            meanwhile = Meanwhile(patch, step, act)
            with suppress(KeyboardInterrupt):
                cachekd.precompute(first)
        begun = meanwhile.left <= 0
        ranks = [other, first] if dies or not begun else [first]
        done = [cachekd.precompute(rank) for rank in ranks][-1]
        assert done["sealed"] and done["root"] == calm["root"], step
        assert len(list((cache / "plans").iterdir())) == 1, step
    assert step > 8


@pytest.mark.usefixtures("no_locks")
def test_a_proposed_plan_that_was_altered_is_refused(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    settings = config(family, data, cache, rank=0, world_size=2)
    with monkeypatch.context() as patch:
        patch.setattr(Location, "remove", lambda *_: killed())
        with suppress(KeyboardInterrupt):
            cachekd.precompute(settings)
    (proposal,) = (cache / "plans").glob("*.first")
    for path in (cache / "plans").glob("*.json"):
        path.unlink()
    proposal.write_text("{}")
    with pytest.raises(CorruptCache, match=r"\.first: it proposes no plan of this run.*delete it"):
        cachekd.precompute(settings)
    proposal.unlink()
    assert cachekd.precompute(settings)["units_left_to_others"]


@pytest.mark.usefixtures("no_locks")
def test_a_rank_that_has_no_share_loads_no_teacher(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DummyTeacher, "load", lambda *_: pytest.fail("a teacher was loaded"))
    report = cachekd.precompute(config(family, data, tmp_path / "cache", rank=999, world_size=1000))
    assert report["units_left_to_others"] == report["shards_to_write"]


def test_with_locks_a_rank_takes_over_what_nobody_has(
    family: Family, data: Path, tmp_path: Path, calm: dict[str, Any]
) -> None:
    done = cachekd.precompute(config(family, data, tmp_path / "cache", rank=2, world_size=4))
    assert done["root"] == calm["root"] and done["sealed"]


@pytest.mark.usefixtures("no_locks")
def test_any_number_of_ranks_continues_after_one_that_was_stopped(
    family: Family,
    data: Path,
    tmp_path: Path,
    calm: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, score, calls = tmp_path / "cache", DummyTeacher.score, []

    def interrupted(self: DummyTeacher, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return score(self, *args)

    cachekd.precompute(config(family, data, cache, rank=0, world_size=3))
    with monkeypatch.context() as patch:
        patch.setattr(DummyTeacher, "score", interrupted)
        with pytest.raises(Incomplete, match="by a signal"):
            cachekd.precompute(config(family, data, cache, rank=1, world_size=3))
    assert not cachekd.precompute(config(family, data, cache, rank=1, world_size=2))["sealed"]
    assert cachekd.precompute(config(family, data, cache))["root"] == calm["root"]


@pytest.mark.usefixtures("no_locks")
def test_ranks_write_each_response_once(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    further = {"generate": "greedy", "max_new_tokens": 4, "sort_window": 5}
    one = cachekd.precompute(config(family, data, tmp_path / "one", **further))
    asked: list[bytes] = []
    write = DummyTeacher.write

    def watched(self: DummyTeacher, prompts: Any, spec: Any) -> Any:
        asked.extend(prompt.input_ids.tobytes() for prompt in prompts)
        return write(self, prompts, spec)

    monkeypatch.setattr(DummyTeacher, "write", watched)
    for rank in (1, 0):
        last = cachekd.precompute(
            config(family, data, tmp_path / "two", rank=rank, world_size=2, **further)
        )
    assert len(asked) == len(set(asked)) == one["responses"]
    assert last["root"] == one["root"]


@pytest.mark.slow
def test_torchrun_and_one_process_give_one_cache(
    family: Family, tmp_path: Path, cachekd: Callable[..., Ran]
) -> None:
    """Two processes of torchrun, with the real teacher; none of them says that it is alone."""
    data = write_rows(tmp_path / "many.jsonl", chat_rows(60))
    shared = ["precompute", "--teacher", family.teacher, "--data", data, "--unit-tokens", 200]
    shared += ["--batch-tokens", 100, "--threads", 1, "--json"]
    calm = cachekd(*shared, "--cache", tmp_path / "calm")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "cachekd_cli", *map(str, shared), "--cache", str(tmp_path / "cache")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(calm.json["root"]) == 2
    for rank in (0, 1):
        assert f"this is rank {rank} of 2 by RANK and WORLD_SIZE" in done.stderr
