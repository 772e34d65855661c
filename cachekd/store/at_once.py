"""Files of a remote cache asked for several at once, where a local one is read one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

_THREADS = 8
_BEGUN = 2 * _THREADS  # files that are asked for and not read yet

Read = Callable[[str], bytes]
S = TypeVar("S")
T = TypeVar("T")


def each_of(act: Callable[[S], T], items: Iterable[S], *, at_once: bool) -> list[T]:
    """What an act gives for each of these, in order; the first error is raised."""
    if not at_once:
        return [act(item) for item in items]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="cachekd-each") as pool:
        return list(pool.map(act, items))


@contextmanager
def read_at_once(names: Iterable[str], read: Read) -> Iterator[Read]:
    """Within: reads a file as ``read`` does; these are asked for in their order, before that.

    What went wrong with a file is raised where that file is read.
    """
    waiting, begun = iter(names), dict[str, Future[bytes]]()
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="cachekd-read")

    def begin(count: int) -> None:
        for name in islice(waiting, count):
            begun[name] = pool.submit(read, name)

    def read_begun(name: str) -> bytes:
        begin(1)
        found = begun.pop(name, None)
        return read(name) if found is None else found.result()

    try:
        begin(_BEGUN)
        yield read_begun
    finally:
        pool.shutdown(cancel_futures=True)
