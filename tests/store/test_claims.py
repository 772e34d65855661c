"""Who works on what, and what dead writers leave: locks that the system lets go of."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from runs import capture
from tiny import Family, Ran, chat_rows, write_rows

from cachekd.data.digests import bytes_digest
from cachekd.errors import CorruptCache, MismatchError, StoreError
from cachekd.store import disk
from cachekd.store.claims import REPAIR, Claims, alone, unrepaired
from cachekd.store.io import Location
from cachekd.store.layout import FOLDERS
from cachekd.store.reader import open_cache
from cachekd.store.seal import seal
from cachekd.store.temporary import LEASE_SECONDS, TEMPORARY
from cachekd.store.verify import verify
from cachekd.teachers.dummy import DummyTeacher

OTHER = """
import os, sys
from cachekd.store.claims import Claims, unrepaired
from cachekd.store.io import Location
from cachekd.store.temporary import temporary

location = Location(sys.argv[1])
if sys.argv[2] == "begin":
    with unrepaired(location):
        print("begun", flush=True)
        sys.stdin.read()
elif sys.argv[2] == "claim":
    claims = Claims(location, "work")
    print([claims.take(number) for number in (3, 4)], flush=True)
    sys.stdin.read()
else:
    os.makedirs(sys.argv[1] + "/units", exist_ok=True)
    with temporary(os.open(sys.argv[1] + "/units", os.O_RDONLY), [b"half"]) as name:
        print(name, flush=True)
        sys.stdin.read()
"""


@contextmanager
def other(cache: Path, act: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process that holds what it took until it is told to end; and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(cache), act],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdin is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def locks(cache: Path) -> list[str]:
    return [path.name for path in cache.glob(".claims-*")]


def test_a_claim_of_another_process_is_respected_while_it_lives(tmp_path: Path) -> None:
    location = Location(str(tmp_path))
    with Claims(location, "work") as claims, other(tmp_path, "claim") as (process, said):
        assert said == "[True, True]"
        assert [claims.take(number) for number in (3, 4, 5)] == [False, False, True]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert claims.take(3) and claims.take(4), "the system let go of what the dead had"
    assert locks(tmp_path) == []


def test_the_file_stays_while_somebody_uses_it(tmp_path: Path) -> None:
    location = Location(str(tmp_path))
    with other(tmp_path, "claim") as (process, _):
        with Claims(location, "work") as claims:
            assert not claims.take(3)
        assert len(locks(tmp_path)) == 1
        location.sweep(FOLDERS)
        assert len(locks(tmp_path)) == 1, "it is in use"
        with Claims(location, "work") as claims:
            assert not claims.take(3), "and it is the same file"
        process.kill()
        process.wait()
        location.sweep(FOLDERS)
        assert locks(tmp_path) == []


def test_a_released_piece_can_be_taken_by_another(tmp_path: Path) -> None:
    with Claims(Location(str(tmp_path)), "work") as claims:
        assert claims.take(3)
        claims.release(3)
        with other(tmp_path, "claim") as (_, said):
            assert said == "[True, True]" and not claims.take(3)


def test_a_folder_made_for_claims_alone_goes_with_them(tmp_path: Path) -> None:
    with Claims(Location(str(tmp_path / "new")), "work"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    with Claims(Location(str(tmp_path / "mine")), "work"):
        pass
    assert (tmp_path / "mine").is_dir() and not list((tmp_path / "mine").iterdir())


def test_where_there_are_no_local_locks_every_claim_is_granted(tmp_path: Path) -> None:
    location = Location(f"memory://{tmp_path}")
    with Claims(location, "work") as left, Claims(location, "work") as right:
        assert left.take(1) and right.take(1)


def test_what_a_dead_writer_left_is_swept_and_what_a_live_one_writes_is_not(tmp_path: Path) -> None:
    location = Location(str(tmp_path))
    with other(tmp_path, "write") as (process, name):
        assert name.startswith(TEMPORARY)
        assert location.sweep(FOLDERS) == 0 and (tmp_path / "units" / name).exists()
        process.kill()
        process.wait()
        assert (tmp_path / "units" / name).exists()
        assert location.sweep(FOLDERS) == 1 and not list((tmp_path / "units").iterdir())


@pytest.mark.parametrize(
    ("age", "gone"), [(0, 0), (LEASE_SECONDS - 60, 0), (LEASE_SECONDS + 60, 1)]
)
def test_files_of_other_hosts_are_swept_when_they_are_old(
    tmp_path: Path, age: float, gone: int
) -> None:
    (tmp_path / "logits").mkdir()
    path = tmp_path / "logits" / f"{TEMPORARY}00000000-{'0' * 32}"
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    assert Location(str(tmp_path)).sweep(FOLDERS) == gone and path.exists() == (not gone)


def test_a_sweep_takes_nothing_else(tmp_path: Path) -> None:
    location = Location(str(tmp_path))
    location.create("units/record", b"x")
    (tmp_path / "units" / ".hidden").write_text("not ours")
    (tmp_path / "units" / f"{TEMPORARY}link").symlink_to(tmp_path / "units" / "record")
    assert location.sweep(FOLDERS) == 0 and len(list((tmp_path / "units").iterdir())) == 3


def test_a_file_named_by_its_digest_is_mended(tmp_path: Path) -> None:
    location, digest = Location(str(tmp_path)), bytes_digest(b"true")
    for found in (b"true", b"trub", b"tr", b""):
        (tmp_path / "index").mkdir(exist_ok=True)
        (tmp_path / "index" / digest).write_bytes(found)
        location.keep(f"index/{digest}", b"true", digest)
        assert (tmp_path / "index" / digest).read_bytes() == b"true"


def test_a_seal_waits_for_another_and_tells_the_newest_state(cache: Path) -> None:
    """One that read an older state must not be sealed after one that read a newer."""

    location = Location(str(cache))
    code = (
        "import sys; from cachekd.store.claims import Claims; "
        "from cachekd.store.io import Location; "
        "claims = Claims(Location(sys.argv[1]), 'seal'); claims.take(0); print('have'); "
        "sys.stdout.flush(); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(cache)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        done: list[int] = []
        thread = threading.Thread(target=lambda: done.append(seal(location).generation))
        thread.start()
        thread.join(timeout=1.0)
        waited = thread.is_alive()
        process.kill()
    thread.join(timeout=60)
    assert waited and done == [1]


def test_a_repair_and_a_capture_keep_out_of_each_others_way(cache: Path) -> None:
    location = Location(str(cache))
    with (
        other(cache, "claim"),
        pytest.raises(StoreError, match="another process writes this cache"),
        alone(location),
    ):
        pass
    with alone(location):
        assert len(locks(cache)) == 1
    with Claims(location, REPAIR) as claims, other(cache, "begin") as (process, said):
        assert said == "begun"
        with unrepaired(location):  # any number may begin at once
            assert not claims.take(0)
        process.kill()
        assert claims.wait(0)
        done = subprocess.run(
            [sys.executable, "-c", OTHER, str(cache), "begin"], capture_output=True, text=True
        )
    assert done.returncode == 1 and "is being repaired" in done.stderr
    with other(cache, "begin"), pytest.raises(StoreError, match="writes this cache"):
        alone(location).__enter__()
    with unrepaired(location):
        assert len(locks(cache)) == 1
    assert locks(cache) == []


def test_a_root_that_another_process_takes_away_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who made a root for a lock alone takes it away, while another is about to use it."""
    opened, root = disk.open_lock, tmp_path / "new"
    taken_away = []

    def late(name: str, folder: int) -> int:
        if not taken_away:
            taken_away.append(root.rmdir())
        return opened(name, folder)

    monkeypatch.setattr(disk, "open_lock", late)
    with Claims(Location(str(root)), "work") as claims:
        assert taken_away and len(locks(root)) == 1 and claims.take(0)
    assert not root.exists()


@pytest.mark.parametrize("call", ["lockf", "flock"])
def test_a_filesystem_without_locks_writes_all_the_same(
    cache: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def none(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, call, none)
    location = Location(str(cache))
    with Claims(location, "work") as claims:
        assert claims.take(1)
        claims.release(1)
        assert claims.wait(2) == (call == "flock")
    location.create("units/x", b"x")
    location.sweep(FOLDERS)
    with open(cache / "cache.json") as stream:
        assert disk.is_free(stream.fileno()) is (True if call == "lockf" else None)
    assert not verify(str(cache)).problems


def test_another_teacher_does_not_write_a_lost_identity(
    cache: Path, tmp_path: Path, family: Family
) -> None:
    lost = (cache / "cache.json").read_bytes()
    (cache / "cache.json").unlink()
    data = write_rows(tmp_path / "data.jsonl", chat_rows(3))
    with pytest.raises(MismatchError, match="capture_id"):
        capture(family, data, cache, backend="dummy", logits_top_k=3)
    assert not (cache / "cache.json").exists()
    (cache / "cache.json").write_bytes(lost)


def test_the_same_teacher_writes_a_lost_identity_and_scores_nothing(
    tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, cache = write_rows(tmp_path / "data.jsonl", chat_rows(3)), tmp_path / "cache"
    capture(family, data, cache, backend="dummy")
    (cache / "cache.json").unlink()
    with pytest.raises(CorruptCache, match=r"cache\.json is missing.*restore it from a copy"):
        open_cache(str(cache))
    monkeypatch.setattr(DummyTeacher, "score", lambda *_, **__: pytest.fail("it scored again"))
    capture(family, data, cache, backend="dummy")
    assert not verify(str(cache)).problems and len(open_cache(str(cache))) == 3


def test_a_repaired_cache_that_lacks_data_says_so(
    cache: Path, cachekd: Callable[..., Ran], caplog: pytest.LogCaptureFixture
) -> None:
    damaged = sorted((cache / "logits").glob("*.parquet"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    ran = cachekd("verify", cache, "--repair")
    assert ran.code == 3 and "precompute" in ran.out
    open_cache(str(cache))
    assert "was repaired: 1 files that it had are left out" in caplog.text


def test_a_repair_does_not_call_an_unsealed_cache_whole(
    cache: Path, cachekd: Callable[..., Ran]
) -> None:
    (cache / "manifest-1.json").unlink()
    (cache / "manifest.json").unlink()
    ran = cachekd("verify", cache, "--repair")
    assert ran.code == 3 and "not sealed" in ran.out and "precompute" in ran.out
