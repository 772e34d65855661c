"""Memory that runs out in one call of five: the job ends, with the records of a calm run."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import ids_of, writing_config
from sick import SHORT, short_of_memory
from tiny import Family, Ran, chat_rows, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.capture import worker
from cachekd.engines import _writers as writers
from cachekd.errors import StoreError, TeacherError
from cachekd.store.io import Location
from cachekd.store.state import read_state
from cachekd.store.verify import verify
from cachekd.teachers import _memory
from cachekd.teachers._memory import MOST_FAILURES, in_pieces
from cachekd.teachers.dummy import DummyTeacher
from cachekd.teachers.hf import HFTeacher
from cachekd.types import Record

TEACHERS = {"dummy": DummyTeacher, "hf": HFTeacher}
Tries = list[tuple[int, bool]]


def config(family: Family, data: Path, cache: Path, **further: Any) -> PrecomputeConfig:
    settings = {"threads": 1, "unit_tokens": 300, "batch_tokens": 150, "writers": 0}
    settings |= {"logits_values": "float32"}
    return PrecomputeConfig(
        teacher=str(family.teacher), data=(str(data),), cache=str(cache), **{**settings, **further}
    )


def shards(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "logits").glob("*.parquet"))


def splits(cache: Path) -> list[dict[str, int]]:
    units = read_state(Location(str(cache))).units.values()
    return [dict(unit.numerics["split"]) for unit in units]


@pytest.mark.parametrize("backend", TEACHERS)
@pytest.mark.parametrize(
    "kind",
    [
        kind if kind == "cuda" else pytest.param(kind, marks=pytest.mark.reliability)
        for kind in SHORT
    ],
)
def test_a_fifth_of_the_calls_fails(
    family: Family,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    kind: str,
) -> None:
    """Where no batch was split, and always where shapes are no matter, no byte is another."""
    teacher, data = TEACHERS[backend], write_rows(data, chat_rows(60))
    cachekd.precompute(config(family, data, tmp_path / "calm", backend=backend))
    calm = cachekd.open_cache(str(tmp_path / "calm"))
    score, whole, cut, failed = teacher.score, 0, 0, 0
    for seed in range(4):
        cache, tries = tmp_path / f"{seed}", Tries()
        monkeypatch.setattr(teacher, "score", short_of_memory(score, 0.2, seed, kind, tries))
        cachekd.precompute(config(family, data, cache, backend=backend))
        failed += sum(fails for _, fails in tries)
        parts = splits(cache)
        if backend == "dummy" or not any(parts):
            assert shards(cache) == shards(tmp_path / "calm")
        else:
            assert_alike(list(calm), list(cachekd.open_cache(str(cache))))
        whole, cut = whole + (not any(parts)), cut + any(map(bool, parts))
        assert not verify(str(cache)).problems
    assert failed > 8 and whole and cut, "these seeds must show both"


def assert_alike(calm: list[Record], disturbed: list[Record]) -> None:
    """The same tokens in 99.9 % of rows, and values within what shapes of batches change."""
    rows = same = 0
    for left, right in zip(calm, disturbed, strict=True):
        assert left.input_ids.tolist() == right.input_ids.tolist()
        a, b = left.logits, right.logits
        for t in range(a.rows):
            mine, theirs = (set(x.ids[x.offsets[t] : x.offsets[t + 1]]) for x in (a, b))
            rows, same = rows + 1, same + (mine == theirs)
        assert float(np.abs(a.next_logprob - b.next_logprob).max()) < 2e-5
        assert float(np.abs(a.entropy - b.entropy).max()) < 2e-5
    assert rows > 500 and same >= 0.999 * rows


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """No garbage is looked for: nothing was held."""
    monkeypatch.setattr(_memory, "release", lambda: None)


@pytest.mark.usefixtures("light")
def test_tries_are_bounded_and_reach_single_rows() -> None:
    """Whatever the size of a batch, five tries in a row end with one of a single row."""
    for rows in [*range(1, 70), 1000, 4096]:
        sizes: list[int] = []

        def never(part: slice, sizes: list[int] = sizes) -> list[int]:
            sizes.append(part.stop - part.start)
            raise MemoryError("injected")

        with pytest.raises(TeacherError, match="given up 0"):
            in_pieces(rows, never, lambda part, _: TeacherError(f"given up {part.start}"))
        assert len(sizes) == MOST_FAILURES == 5
        assert sizes[:2] == [rows, rows] and sizes[-1] == 1
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("room", [1, 2, 3, 7, 40, 64])
def test_pieces_are_all_rows_in_order(room: int) -> None:
    def fits(part: slice) -> list[int]:
        if part.stop - part.start > room:
            raise MemoryError("injected")
        return list(range(part.start, part.stop))

    found, pieces = in_pieces(64, fits, lambda *_: TeacherError("given up"))
    assert found == list(range(64)) and (pieces == 1) == (room == 64)
    assert pieces <= 64


@pytest.mark.usefixtures("light")
def test_each_piece_that_is_done_counts_anew() -> None:
    """Four failures before every piece are borne, five are not."""
    failures = 0

    def mostly(part: slice) -> list[int]:
        nonlocal failures
        failures += 1
        if failures % 5:
            raise MemoryError("injected")
        return list(range(part.start, part.stop))

    found, pieces = in_pieces(3, mostly, lambda *_: TeacherError("given up"))
    assert found == [0, 1, 2] and pieces == 3 and failures == 15


def test_nothing_of_a_failed_try_is_held(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, held = HFTeacher.score, list[weakref.ref[torch.Tensor]]()

    def shaky(self: HFTeacher, *args: Any) -> Any:
        assert all(one() is None for one in held), "the failed try is still in memory"
        if len(held) < 6 and len(held) % 3 < 2:
            large = torch.zeros(1000)
            held.append(weakref.ref(large))
            try:
                raise torch.OutOfMemoryError("injected")
            finally:
                self._last = sys.exc_info()  # type: ignore[attr-defined]
                del self._last  # type: ignore[attr-defined]
        held.append(weakref.ref(torch.zeros(1)))
        return score(self, *args)

    monkeypatch.setattr(HFTeacher, "score", shaky)
    cachekd.precompute(config(family, data, tmp_path / "c"))
    assert len(held) > 6


def test_no_memory_for_a_batch_names_it_and_what_to_set(
    cachekd: Callable[..., Ran],
    family: Family,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries = Tries()
    shaky = short_of_memory(DummyTeacher.score, 1.0, 0, "cuda", tries)
    monkeypatch.setattr(DummyTeacher, "score", shaky)
    flags = ("--teacher", family.teacher, "--data", data, "--cache", tmp_path / "c")
    ran = cachekd("precompute", *flags, "--backend", "dummy", "--batch-tokens", 400)
    assert ran.code == 1 and "data.jsonl row" in ran.err and "5 times in a row" in ran.err
    assert "CUDA out of memory" in ran.err and "--batch-tokens" in ran.err
    assert len(tries) == 5 and tries[0] == tries[1] and tries[-1][0] == 1 < tries[0][0]
    assert "Traceback" not in ran.err and not (tmp_path / "c").exists()


@pytest.mark.parametrize("where", ["weights", "probe"])
@pytest.mark.parametrize("kind", SHORT)
def test_no_memory_to_load_the_teacher(
    cachekd: Callable[..., Ran],
    family: Family,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    kind: str,
) -> None:
    """Also in the probe of its head, which else takes any error for a model of another make."""
    from cachekd.teachers import hf
    from cachekd.teachers._head import LogitRows

    def short(*args: Any) -> Any:
        raise SHORT[kind]()

    if where == "weights":
        monkeypatch.setattr(hf, "load_model", short)
    else:
        monkeypatch.setattr(LogitRows, "chunks", short)
    flags = ("--teacher", family.teacher, "--data", data, "--cache", tmp_path / "c")
    ran = cachekd("precompute", *flags)
    assert ran.code == 1 and "cannot be loaded: out of memory" in ran.err
    assert "--device-map auto" in ran.err and not (tmp_path / "c").exists()


def test_short_memory_while_responses_are_written(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cachekd.precompute(writing_config(family, data, tmp_path / "calm"))
    write, tries = DummyTeacher.write, Tries()
    monkeypatch.setattr(DummyTeacher, "write", short_of_memory(write, 0.2, 3, "cuda", tries))
    cachekd.precompute(writing_config(family, data, tmp_path / "c"))
    assert any(failed for _, failed in tries)
    assert ids_of(tmp_path / "c") == ids_of(tmp_path / "calm")
    assert shards(tmp_path / "c") == shards(tmp_path / "calm")


LIMITED = """
import resource
import cachekd.engines._writer_process as writer
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
writer.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the size of a process is read from /proc")
def test_a_writer_without_memory(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its units need more than the process may have; the same command without the limit ends."""
    data = write_rows(tmp_path / "many.jsonl", chat_rows(1500))
    settings = config(
        family,
        data,
        tmp_path / "c",
        backend="dummy",
        writers=1,
        unit_tokens=10**6,
        batch_tokens=4096,
        logits_selection="full",
    )
    popen = writers.subprocess.Popen
    with monkeypatch.context() as patch:
        patch.setattr(worker, "_WORTH_A_PROCESS", 0)
        patch.setattr(
            writers.subprocess,
            "Popen",
            lambda command, **how: popen([command[0], "-c", LIMITED], **how),
        )
        patch.setattr(worker, "writers_of", lambda job: worker.WriterPool(1))
        with pytest.raises((StoreError, RuntimeError), match=r"memory|MemoryError"):
            cachekd.precompute(settings)
    assert not list((tmp_path / "c").glob("manifest*"))
    assert not verify(str(tmp_path / "c"), partial=True).problems
