"""Loader workers that die, or fail: which one, how, what it was reading, and what to do.

In: notes that workers make of what they read, in memory shared with the process that started them
(`Reading`), and what torch raises there. Out: within `named_workers`, a `WorkerError` that names
worker, samples and files; the other workers are ended and nothing is waited for. An error that a
worker raised itself keeps its class and its own words.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import RawArray
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
from torch._C import _remove_worker_pids
from torch.utils.data import get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from cachekd.errors import CachekdError, WorkerError
from cachekd.types import Int64

_SLOTS, _WIDTH = 256, 64
_PID, _STATE, _COUNT, _FIRST = range(4)
_SHOWN = 8  # samples and files of a message
_SETTLE_SECONDS = 2.0  # at most, between a broken pipe and the end of the process that had it
_POLL_SECONDS = 0.01
_JOIN_SECONDS = 2.0
_SHARED = "/dev/shm"  # noqa: S108 (not ours to choose: where Linux has shared memory)
_DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
_RAISED = re.compile(r"Caught (\w+) in DataLoader worker process (\d+)\.\n")
_WHY = {
    signal.SIGKILL: "SIGKILL is what the kernel sends where memory runs out: give it more memory, "
    "or lower",
    signal.SIGBUS: "SIGBUS comes where shared memory runs out: make /dev/shm larger, or lower",
    signal.SIGSEGV: "SIGSEGV is a crash in compiled code, of the cache's files or of a package: "
    "run cachekd verify; without workers (0) the crash shows where it is. Change",
}


class Reading:
    """What each worker of any loader reads, or read last: a slot for each process.

    Workers see the memory of the process that started them, whatever way that was; a copy made for
    another purpose notes for itself. Nobody waits for anybody.
    """

    def __init__(self, shared: Any = None) -> None:
        self._shared = RawArray("q", _SLOTS * _WIDTH) if shared is None else shared

    def __reduce__(self) -> tuple[Any, ...]:
        return Reading, () if get_spawning_popen() is None else (self._shared,)

    @contextmanager
    def noted(self, indices: Sequence[int]) -> Iterator[None]:
        """Within, the worker whose process this is reads these samples."""
        if get_worker_info() is None:
            yield
            return
        if self._slot(os.getpid())[_PID] != os.getpid():
            _leave_signals_to_parent()
        self.note(indices)
        try:
            yield
        finally:
            self._slot(os.getpid())[_STATE] = 0

    def note(self, indices: Sequence[int]) -> None:
        """Write down that this process reads these samples."""
        slot, shown = self._slot(os.getpid()), indices[: _WIDTH - _FIRST]
        slot[_STATE] = 0
        slot[_FIRST : _FIRST + len(shown)] = shown
        slot[[_COUNT, _PID]] = len(indices), os.getpid()
        slot[_STATE] = 1

    def of(self, pid: int) -> tuple[bool, int, list[int]]:
        """Whether a worker reads now, how many samples, and the first of them."""
        slot = self._slot(pid)
        if slot[_PID] != pid:
            return False, 0, []
        count = int(slot[_COUNT])
        shown: list[int] = slot[_FIRST : _FIRST + min(count, _WIDTH - _FIRST)].tolist()
        return bool(slot[_STATE]), count, shown

    def _slot(self, pid: int) -> Int64:
        slot: Int64 = np.frombuffer(self._shared, np.int64).reshape(_SLOTS, _WIDTH)[pid % _SLOTS]
        return slot


def _leave_signals_to_parent() -> None:
    """A terminal and a batch system send these to all processes: the one that trains decides.

    What a worker that ends by SIGTERM had read is not missed before the next step. It must end with
    code 0: to torch another one is an error, which it raises in the midst of a step.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _leave)
        sys.excepthook = _without_parent


def _without_parent(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Say nothing where the parent stopped fetching a batch: it tells why."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _leave(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, lambda *_: os._exit(0))  # a second one does not wait
    sys.exit(0)  # locks that others wait for are given back


@contextmanager
def named_workers() -> Iterator[None]:
    """Within, errors of loader workers say what a user can do; loaders are made and used there.

    Raises:
        WorkerError: a worker died or had no memory; it is named, with what it was reading.
        CachekdError: what a worker raised, in its own words.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if isinstance(error, RuntimeError) and not _DIED.search(str(error)):
            raise
        with _no_child_signals():
            dead = _dead_workers(error)
            text = _text(dead)
            for loader in {id(one.loader): one.loader for one in dead}.values():
                _end(loader)
        if not dead:
            raise
        raise WorkerError(text) from error
    except (CachekdError, MemoryError) as error:
        raised = _RAISED.match(str(error))
        if raised is None:
            raise
        if isinstance(error, MemoryError):
            raise WorkerError(
                f"loader worker {raised[2]} had no memory left. {_less('Lower')}"
            ) from error
        raise type(error)(f"{_own_words(error)} (met by loader worker {raised[2]})") from error


@dataclass(frozen=True, slots=True, eq=False)
class _Dead:
    """A worker that is gone."""

    loader: Any
    number: int
    pid: int
    code: int


@contextmanager
def _no_child_signals() -> Iterator[None]:
    """Within, the end of a further worker raises nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except RuntimeError:  # another one died this moment; each loader tells of one
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _dead_workers(error: BaseException) -> list[_Dead]:
    """Workers that died: those that torch names, and all that did not end well."""
    said = _DIED.search(str(error))
    named = {int(pid) for pid in said[1].split(",")} if said else set()
    # Loaders are found among all objects: who holds them is up to accelerate and the caller.
    loaders = [
        loader
        for loader in gc.get_objects()
        if issubclass(type(loader), _MultiProcessingDataLoaderIter) and not loader._shutdown
    ]
    workers = [
        (loader, number, worker)
        for loader in loaders
        for number, worker in enumerate(loader._workers)
    ]
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        codes = [worker.exitcode for _, _, worker in workers]
        dead = [
            _Dead(loader, number, worker.pid, code)
            for (loader, number, worker), code in zip(workers, codes, strict=True)
            if code is not None and (code or worker.pid in named)
        ]
        if dead or not workers or time.monotonic() >= deadline:
            return dead
        time.sleep(_POLL_SECONDS)


def _end(loader: Any) -> None:
    """End what is left of a loader: torch's own way waits for locks that a dead worker may hold."""
    _remove_worker_pids(id(loader))
    loader._worker_pids_set, loader._shutdown = False, True
    if loader._pin_memory:
        loader._pin_memory_thread_done_event.set()
    for worker in loader._workers:
        worker.kill()
        worker.join(_JOIN_SECONDS)
        # torch unlinks what it shares at once, unless it is killed just before.
        for path in Path(_SHARED).glob(f"torch_{worker.pid}_*"):
            path.unlink(missing_ok=True)


def _text(dead: Sequence[_Dead]) -> str:
    told = "; ".join(
        f"loader worker {one.number} of {len(one.loader._workers)} (pid {one.pid}) "
        f"{_how(one.code)} {_what(one)}"
        for one in dead
    )
    codes = [-one.code for one in dead if one.code < 0]
    why = _WHY.get(signal.Signals(codes[0]), "Change") if codes else "Change"
    return f"{told}. {_less(why)}"


def _less(why: str) -> str:
    return (
        f"{why} --dataloader-num-workers, --dataloader-prefetch-factor or the batch size. What was "
        "saved is whole: the same command with --resume-from-checkpoint true continues"
    )


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def _what(one: _Dead) -> str:
    """What a worker was reading, as far as it noted it."""
    dataset = one.loader._dataset
    source = getattr(dataset, "samples", dataset)  # of prompts
    reading = getattr(source, "reading", None)
    if reading is None:
        return f"while it made a batch of {type(dataset).__name__}, which lies in memory"
    now, count, shown = reading.of(one.pid)
    if not count:
        return "before it read a sample"
    files = source.files_of(shown)
    return (
        f"{'while it read' if now else 'after it had read'} {_listed(shown, count, 'samples')} "
        f"of {_listed(files, len(files), '')}".replace("  ", " ")
    )


def _listed(items: Sequence[object], count: int, noun: str) -> str:
    more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
    return f"{noun} " + ", ".join(map(str, items[:_SHOWN])) + more


def _own_words(error: BaseException) -> str:
    """The message of an error as the worker raised it, without the trace around it."""
    kind = type(error)
    return str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip()
