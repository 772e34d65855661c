"""The local cache of remote files: never above its bound, never a wrong byte, nothing half-left."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from forking import Forked

from cachekd.errors import CorruptCache, StoreError
from cachekd.store import disk, local_cache, parts
from cachekd.store.local_cache import PART, LocalCache

SIZE = 1000
FILES, LIMIT = 12, 5 * SIZE  # of several processes


def body(number: int) -> bytes:
    return bytes([number]) * SIZE


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != ".lock")


class Source:
    """Gives bytes in pieces, and notes the most that the folder held meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.peak = folder, 0, 0

    def of(self, data: bytes) -> Any:
        def chunks() -> Iterator[bytes]:
            self.asked += 1
            for start in range(0, len(data), 100):
                self.peak = max(self.peak, held(self.folder))
                yield data[start : start + 100]

        return chunks


def test_the_bound_holds_and_the_oldest_goes(tmp_path: Path) -> None:
    cache, source = LocalCache(str(tmp_path / "c"), 3 * SIZE), Source(tmp_path / "c")
    for number in range(8):
        data = cache.get("x", digest(body(number)), SIZE, source.of(body(number)))
        assert data.to_pybytes() == body(number)
        assert cache.get("x", digest(body(0)), SIZE, source.of(body(0))).to_pybytes() == body(0)
    assert source.asked == 8, "what is used again stays"
    assert source.peak == 3 * SIZE and held(tmp_path / "c") == 3 * SIZE
    assert cache.held() == {digest(body(number)) for number in (0, 6, 7)}


def test_a_file_that_is_mapped_may_go(tmp_path: Path) -> None:
    cache, source = LocalCache(str(tmp_path), SIZE), Source(tmp_path)
    first = cache.get("x", digest(body(1)), SIZE, source.of(body(1)))
    cache.get("x", digest(body(2)), SIZE, source.of(body(2)))
    assert first.to_pybytes() == body(1) and cache.held() == {digest(body(2))}


def test_any_process_can_tell_that_something_was_taken_away(tmp_path: Path) -> None:
    cache, other = (LocalCache(str(tmp_path / "c"), limit) for limit in (2 * SIZE, 3 * SIZE))
    assert cache.evictions() == -1 and cache.held() == frozenset()
    source = Source(tmp_path / "c")
    for number in range(5):
        cache.get("x", digest(body(number)), SIZE, source.of(body(number)))
        assert cache.evictions() == other.evictions() == max(0, number - 1)
    assert other.held() == {digest(body(number)) for number in (3, 4)}
    assert (tmp_path / "c" / ".lock").stat().st_blocks == 0, "a count takes no room"


def test_a_damaged_file_is_fetched_again(tmp_path: Path) -> None:
    source, name = Source(tmp_path), digest(body(1))
    LocalCache(str(tmp_path), SIZE).get("x", name, SIZE, source.of(body(1)))
    (tmp_path / name).write_bytes(body(2))
    again = LocalCache(str(tmp_path), SIZE).get("x", name, SIZE, source.of(body(1)))
    assert again.to_pybytes() == body(1) and source.asked == 2


@pytest.mark.parametrize("wrong", [body(2), body(1)[:-1], body(1) + b"x", b""])
def test_wrong_bytes_never_become_a_file(tmp_path: Path, wrong: bytes) -> None:
    source, name = Source(tmp_path), digest(body(1))
    cache = LocalCache(str(tmp_path), 2 * SIZE)
    with pytest.raises(
        CorruptCache, match=rf"s3://there: expected {SIZE} bytes with sha256 {name}"
    ):
        cache.get("s3://there", name, SIZE, source.of(wrong))
    assert source.asked == 3 and held(tmp_path) == 0 and source.peak <= SIZE


def test_a_file_larger_than_the_bound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"1000 bytes.* may hold 999\. Raise --local-cache-size"):
        LocalCache(str(tmp_path), SIZE - 1).get(
            "x", digest(body(1)), SIZE, Source(tmp_path).of(b"")
        )


@pytest.mark.parametrize("operation", ["reserve", "write_at", "rename"])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, operation, fail)
    cache, source = LocalCache(str(tmp_path), 2 * SIZE), Source(tmp_path)
    with pytest.raises(StoreError, match=r"local cache .* No space left.* --local-cache"):
        cache.get("x", digest(body(1)), SIZE, source.of(body(1)))
    assert held(tmp_path) == 0
    monkeypatch.undo()
    assert cache.get("x", digest(body(1)), SIZE, source.of(body(1))).size == SIZE


def test_what_a_dead_process_had_begun_goes(tmp_path: Path) -> None:
    (tmp_path / f"{PART}{digest(body(1))}-dead").write_bytes(b"x" * SIZE)
    source = Source(tmp_path)
    LocalCache(str(tmp_path), SIZE).get("x", digest(body(1)), SIZE, source.of(body(1)))
    assert [p.name for p in tmp_path.iterdir() if p.name != ".lock"] == [digest(body(1))]


def slowly(number: int) -> Callable[[], Iterator[bytes]]:
    def chunks() -> Iterator[bytes]:
        for start in range(0, SIZE, 250):
            time.sleep(0.001)
            yield body(number)[start : start + 250]

    return chunks


def reading(folder: Path, seed: int) -> Callable[[], None]:
    """A process that reads all files several times, in an order of its own."""

    def run() -> None:
        cache, draw = LocalCache(str(folder), LIMIT), random.Random(seed)
        for _ in range(4):
            for number in draw.sample(range(FILES), FILES):
                data = cache.get(f"x{number}", digest(body(number)), SIZE, slowly(number))
                assert data.to_pybytes() == body(number)

    return run


def held_alone(cache: LocalCache) -> int:
    """Bytes of the folder while nobody may begin a file or take one away."""
    sizes: dict[str, int] = {}
    with cache._folder.opened("", make=True) as folder, cache._alone(folder):
        for name in os.listdir(folder):
            with suppress(FileNotFoundError):  # renamed just now: it has its other name
                if name != ".lock":
                    sizes[name.removeprefix(PART)[:64]] = os.stat(name, dir_fd=folder).st_size
    return sum(sizes.values())


@pytest.mark.parametrize("kills", [False, True])
def test_several_processes_fill_it_and_one_of_them_dies(tmp_path: Path, kills: bool) -> None:
    folder = tmp_path / "held"
    cache = LocalCache(str(folder), LIMIT)
    processes = [Forked(reading(folder, seed), tmp_path / f"log-{seed}") for seed in range(4)]
    peaks, killed = [0], False
    while not all(process.ended() for process in processes):
        peaks.append(held_alone(cache))
        if kills and not killed and any(name.startswith(PART) for name in os.listdir(folder)):
            processes[0].send(signal.SIGKILL)
            killed = True
    codes = [process.end().code for process in processes]
    assert codes == [-signal.SIGKILL if kills else 0, 0, 0, 0]
    assert LIMIT - SIZE < max(peaks) <= LIMIT, "it is used, and never more of it"
    cache.get("x", digest(body(99)), SIZE, slowly(99))
    assert held(folder) <= LIMIT and not [*folder.glob(f"{PART}*")], "what the dead began is gone"
    whole = {digest(body(number)): body(number) for number in (*range(FILES), 99)}
    assert all((folder / name).read_bytes() == whole[name] for name in cache.held())


def test_a_file_that_comes_slowly_is_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_cache, "_WAIT_SECONDS", 0.05)
    source = Source(tmp_path)

    def slow() -> Iterator[bytes]:
        time.sleep(0.1)
        yield from source.of(body(1))()

    cache = LocalCache(str(tmp_path), SIZE)
    assert cache.get("x", digest(body(1)), SIZE, slow).to_pybytes() == body(1)
    assert source.asked == 1


@pytest.mark.parametrize("goes_on", [True, False])
def test_others_are_waited_for_while_they_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goes_on: bool
) -> None:
    """Another fetches the file, for five times as long as one waits for who does not go on."""
    monkeypatch.setattr(local_cache, "_WAIT_SECONDS", 0.2)
    name = digest(body(1))
    part, begun, ended = tmp_path / f"{PART}{name}-other", threading.Event(), threading.Event()

    def fetch() -> None:
        with open(part, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            begun.set()
            for _ in range(20 if goes_on else 0):
                time.sleep(0.05)
                file.write(body(1)[: SIZE // 20])
                file.flush()
            part.rename(tmp_path / name) if goes_on else ended.wait()

    other = threading.Thread(target=fetch)
    other.start()
    begun.wait()
    cache = LocalCache(str(tmp_path), 2 * SIZE)
    nothing = Source(tmp_path).of(b"")
    if goes_on:
        assert cache.get("x", name, SIZE, nothing).to_pybytes() == body(1)
    else:
        with pytest.raises(StoreError, match="went on for 0 seconds"):
            cache.get("x", name, SIZE, nothing)
    ended.set()
    other.join()


def test_without_locks_a_part_that_does_not_go_on_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    old, young = (tmp_path / f"{PART}{digest(body(n))}-0123" for n in (1, 2))
    for path in (old, young):
        path.write_bytes(body(0))
    os.utime(old, (1, 1))
    cache, source = LocalCache(str(tmp_path), 2 * SIZE), Source(tmp_path)
    assert cache.get("x", digest(body(1)), SIZE, source.of(body(1))).to_pybytes() == body(1)
    assert not old.exists() and young.exists()
    monkeypatch.setattr(parts, "STALLED_SECONDS", 0.0)
    assert cache.get("x", digest(body(2)), SIZE, source.of(body(2))).to_pybytes() == body(2)
    assert not young.exists()


def test_a_part_that_was_taken_for_given_up_is_fetched_again(tmp_path: Path) -> None:
    source, name = Source(tmp_path), digest(body(1))

    def taken() -> Iterator[bytes]:
        if source.asked == 0:
            next(tmp_path.glob(f"{PART}*")).unlink()
        yield from source.of(body(1))()

    assert LocalCache(str(tmp_path), SIZE).get("x", name, SIZE, taken).to_pybytes() == body(1)
    assert source.asked == 2
