"""Writers in processes of their own: the same bytes, bounded memory, errors with their message."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.capture import worker
from cachekd.codecs import CodecHeader
from cachekd.data.digests import sample_key
from cachekd.engines._frames import receive_unit, send_unit
from cachekd.engines._writers import WriterPool
from cachekd.errors import ConfigError, Incomplete, StoreError
from cachekd.store.commit import ScoredUnit, Sink
from cachekd.store.io import Location
from cachekd.teachers import Selection
from cachekd.teachers.dummy import DummyTeacher

VOCAB = 50
KEPT = Selection(k=5, p=1.0, min_k=1, vocab_size=VOCAB, temperatures=(2.0,))


def sink(cache: Path, codec: str = "plain") -> Sink:
    header = CodecHeader(codec=codec, vocab_size=VOCAB, values="float16", temperatures=(2.0,))
    return Sink(url=str(cache), plan="0" * 64, capture_id="capture", header=header)


def pool_for(where: Sink) -> WriterPool:
    """One writer that is told where units go."""
    pool = WriterPool(1)
    pool.open(where, None)
    return pool


def unit(number: int, kept: Selection = KEPT) -> ScoredUnit:
    documents = [np.int32([number, 3, i]) for i in range(4)]
    return ScoredUnit(
        number=number,
        keys=tuple(map(sample_key, documents)),
        documents=documents,
        targets=DummyTeacher().score(documents, 3, kept, [None] * 4),
        numerics={"device": "none"},
        seconds=0.0,
    )


@pytest.mark.parametrize("kept", [KEPT, replace(KEPT, tau=0.1), replace(KEPT, k=0, samples=4)])
def test_a_unit_is_the_same_behind_the_pipe(kept: Selection) -> None:
    sent, stream = unit(7, kept), io.BytesIO()
    send_unit(stream, sent)
    data = stream.getvalue()
    came = receive_unit(io.BytesIO(data))
    assert (came.number, came.keys, came.numerics) == (7, sent.keys, sent.numerics)
    for left, right in zip(sent.targets, came.targets, strict=True):
        assert right.lognorm.keys() == left.lognorm.keys() and right.vocab_size == VOCAB
        assert (left.weights is None) == (right.weights is None)
        for name in ("offsets", "ids", "logprobs", "weights", "tail", "next_logprob", "entropy"):
            a, b = getattr(left, name), getattr(right, name)
            assert a is b or (a.dtype == b.dtype and a.tobytes() == b.tobytes())
        assert all((left.lognorm[t] == right.lognorm[t]).all() for t in left.lognorm)
    assert [d.tolist() for d in sent.documents] == [d.tolist() for d in came.documents]
    with pytest.raises(EOFError):
        receive_unit(io.BytesIO(data[:-5]))


def names(cache: Path, folder: str) -> list[str]:
    return sorted(path.name for path in (cache / folder).glob("*") if path.name != "capture.json")


@pytest.fixture
def small_runs_too(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Captures of any size use processes."""
    monkeypatch.setattr(worker, "_WORTH_A_PROCESS", 0)
    yield


def config(family: Family, data: Path, cache: Path | str, **further: object) -> PrecomputeConfig:
    settings = {"threads": 1, "unit_tokens": 200, "batch_tokens": 100, **further}
    return PrecomputeConfig(
        teacher=str(family.teacher), data=(str(data),), cache=str(cache), **settings
    )


@pytest.mark.usefixtures("small_runs_too")
def test_the_bytes_do_not_depend_on_the_writers(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    start = worker.WriterPool
    monkeypatch.setattr(worker, "WriterPool", lambda count: started.append(count) or start(count))
    roots, shards = set(), set()
    for writers in (0, 1, 2):
        cache = tmp_path / str(writers)
        report = cachekd.precompute(config(family, data, cache, writers=writers))
        roots.add(report["root"])
        shards.add(tuple(names(cache, "logits")))
        assert report["shards"] > 3
    assert started == [1, 2] and len(roots) == len(shards) == 1


def test_a_short_run_starts_no_process(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "WriterPool", lambda *_: pytest.fail("a process was started"))
    assert cachekd.precompute(config(family, data, tmp_path / "cache"))["sealed"]


def test_a_negative_number_of_writers_is_refused(family: Family, data: Path) -> None:
    with pytest.raises(ConfigError, match="writers: expected 0 or more; found -1"):
        config(family, data, Path("cache"), writers=-1)


def test_a_writer_imports_no_torch() -> None:
    code = (
        "import sys, cachekd.engines._writer_process; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_error_of_a_writer_has_its_own_message(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "logits").write_text("in the way")
    pool = pool_for(sink(tmp_path / "cache"))
    with pytest.raises(StoreError, match=r"logits.*another kind of file") as caught, pool:
        pool.submit(unit(0))
        pool.finish()
    assert "in a writer's process" in "".join(caught.value.__notes__)
    assert not names(tmp_path / "cache", "units")


def test_what_comes_after_a_failure_is_dropped_whole(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    pool = pool_for(sink(cache, codec="no_such_codec"))
    with pytest.raises(Exception, match="no_such_codec"), pool:
        for number in range(9):
            pool.submit(unit(number))
        pool.finish()
    assert not names(cache, "units") and not names(cache, "logits")


def test_a_writer_that_is_killed_is_named(tmp_path: Path) -> None:
    pool = pool_for(sink(tmp_path / "cache"))
    with pytest.raises(StoreError, match=r"code -9\) before unit 3 was committed.*--writers 0"):  # noqa: SIM117
        with pool:
            pool._processes[0].kill()
            pool.submit(unit(3))
            pool.finish()


def test_the_teacher_waits_only_while_too_many_units_are_not_committed(tmp_path: Path) -> None:
    """One writer, held still: two units are taken, the third waits until it goes on."""
    cache = tmp_path / "cache"
    with pool_for(sink(cache)) as pool:
        (process,) = pool._processes
        pool.submit(unit(0))
        while not pool._done:
            pool.check()
        process.send_signal(signal.SIGSTOP)
        taken: list[int] = []

        def hand_over() -> None:
            for number in (1, 2, 3):
                pool.submit(unit(number))
                taken.append(number)

        thread = threading.Thread(target=hand_over)
        thread.start()
        thread.join(timeout=1.0)
        before = list(taken)
        process.send_signal(signal.SIGCONT)
        thread.join()
        assert before == [1, 2]
    assert len(names(cache, "units")) == 4 and pool.backlog_seconds() >= 0


def test_an_error_of_the_teacher_lets_writers_finish_and_an_interruption_does_not(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match="teacher"), pool_for(sink(tmp_path / "a")) as pool:
        pool.submit(unit(0))
        raise ValueError("teacher")
    assert len(names(tmp_path / "a", "units")) == 1
    with pytest.raises(KeyboardInterrupt), pool_for(sink(tmp_path / "b")) as pool:
        pool._processes[0].send_signal(signal.SIGSTOP)
        pool.submit(unit(0))
        raise KeyboardInterrupt
    assert not names(tmp_path / "b", "units")
    assert all(process.poll() is not None for process in pool._processes)


def test_a_cache_in_memory_is_written_by_the_teachers_process(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_WORTH_A_PROCESS", 0)
    url = f"memory://{tmp_path}/cache"
    assert Location(url).private and not Location(str(tmp_path)).private
    report = cachekd.precompute(config(family, data, url))
    assert report["samples"] == 30


@pytest.mark.usefixtures("small_runs_too")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_was_handed_over(
    family: Family, data: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cachekd.store.verify import verify
    from cachekd.teachers.hf import HFTeacher

    calm, cache = tmp_path / "calm", tmp_path / "cache"
    score, calls = HFTeacher.score, []
    last = 0

    def interrupted(self: HFTeacher, *args: object) -> object:
        calls.append(1)
        if len(calls) == last:
            os.kill(os.getpid(), number)
        return score(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(HFTeacher, "score", interrupted)
    cachekd.precompute(config(family, data, calm, writers=0))
    last = 2 * len(calls) - 3
    with pytest.raises(Incomplete, match="by a signal"):
        cachekd.precompute(config(family, data, cache))
    monkeypatch.setattr(HFTeacher, "score", score)
    begun = names(cache, "logits")
    assert 0 < len(begun) == len(names(cache, "units")) < len(names(calm, "logits"))
    assert not verify(str(cache), partial=True).problems
    cachekd.precompute(config(family, data, cache))
    assert names(cache, "logits") == names(calm, "logits")


@pytest.mark.reliability
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_real_run_with_writers_that_is_ended_continues(
    family: Family, tmp_path: Path, number: int
) -> None:
    """SIGINT reaches the process group, as from a terminal; SIGKILL leaves the writers alone."""
    from cachekd.store.verify import verify

    data, cache = write_rows(tmp_path / "data.jsonl", chat_rows(4000)), tmp_path / "cache"
    command = [sys.executable, "-m", "cachekd_cli", "precompute", "--teacher", family.teacher]
    command += ["--data", data, "--cache", cache, "--unit-tokens", "2000", "--threads", "1"]
    command += ["--writers", "2", "--on-long", "skip"]
    process = subprocess.Popen(
        [str(part) for part in command], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while len(names(cache, "units")) < 3 and process.poll() is None:
        threading.Event().wait(0.05)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=120)  # ends when the writers have closed it too
    assert process.returncode == (3 if number == signal.SIGINT else -9), err
    assert not verify(str(cache), partial=True).problems
    report = cachekd.precompute(
        config(family, data, cache, unit_tokens=2000, batch_tokens=4096, on_long="skip")
    )
    assert 0 < report["shards_to_write"] < report["shards"]
    assert not verify(str(cache)).problems
