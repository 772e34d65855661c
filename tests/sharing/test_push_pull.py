"""Push and pull: what travels, what is skipped, what is seen meanwhile, and what is refused."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Ran

import cachekd as package
from cachekd.config import PushConfig
from cachekd.errors import CachekdError, CacheNotFound, Incomplete, StoreError, UnsealedCache
from cachekd.sharing.copier import Copier
from cachekd.sharing.push import push
from cachekd.store.identity_files import read_identity
from cachekd.store.io import Location
from cachekd.store.verify import verify

from .conftest import Maker, rows_of
from .transfers import bytes_of, fetch, send


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_cache_comes_back_as_it_went(shared: Path, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "team" / "news" if kind == "local" else f"memory://{tmp_path}/team/news"
    sent = send(shared, place)
    assert bytes_of(place) == bytes_of(shared)
    back = fetch(place, tmp_path / "back")
    assert bytes_of(tmp_path / "back") == bytes_of(shared)
    assert sent["root"] == back["root"] == package.open_cache(str(shared)).root
    assert sent["bytes_moved"] == back["bytes_moved"] > sent["bytes"]
    assert not verify(str(tmp_path / "back")).problems


def test_a_second_push_moves_nothing(shared: Path, tmp_path: Path) -> None:
    first = send(shared, tmp_path / "there")
    again = send(shared, tmp_path / "there")
    assert (again["files_moved"], again["bytes_moved"]) == (0, 0)
    assert again["files_skipped"] == first["files_moved"]
    assert again["generation"] == 1


def test_a_dry_run_tells_and_writes_nothing(shared: Path, tmp_path: Path) -> None:
    told = send(shared, tmp_path / "there", dry_run=True)
    assert told["dry_run"] and told["files_to_move"] > 0 and told["bytes_to_move"] > 0
    assert not (tmp_path / "there").exists()
    assert send(shared, tmp_path / "there")["files_moved"] == told["files_to_move"]


def test_what_was_added_travels_alone(cache: Path, make_cache: Maker, tmp_path: Path) -> None:
    there = tmp_path / "there"
    first = send(cache, there)
    make_cache(cache, rows_of(14), domain_column="domain", sort_window=1)
    more = send(cache, there)
    assert 0 < more["files_moved"] < first["files_moved"]
    assert more["root"] == package.open_cache(str(cache)).root
    assert not verify(str(there)).problems


def test_two_caches_of_one_identity_are_united(
    shared: Path, make_cache: Maker, tmp_path: Path
) -> None:
    make_cache(tmp_path / "other", rows_of(6, first=20))
    there = tmp_path / "there"
    send(shared, there)
    united = send(tmp_path / "other", there)
    assert united["samples"] == 18
    assert not verify(str(there)).problems
    assert len(package.open_cache(str(there))) == 18


def test_until_the_seal_there_is_no_cache(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file in turn is the last that arrives: a reader sees no cache, or an unsealed one."""
    create, count = Location.create, [0]

    class Cut(Exception):
        pass

    def cut_after(files: int) -> Callable[..., bool]:
        def limited(self: Location, name: str, data: bytes) -> bool:
            if "there" in self.url:
                count[0] += 1
                if count[0] > files:
                    raise Cut
            return create(self, name, data)

        return limited

    seen = set()
    for files in range(60):
        count[0] = 0
        with monkeypatch.context() as patch:
            patch.setattr(Location, "create", cut_after(files))
            try:
                send(shared, tmp_path / "there", jobs=1)
            except Cut:
                pass
            else:
                break
        with pytest.raises((CacheNotFound, UnsealedCache)) as refusal:
            package.open_cache(str(tmp_path / "there"))
        seen.add(refusal.type)
    assert seen == {CacheNotFound, UnsealedCache}
    assert bytes_of(tmp_path / "there") == bytes_of(shared)


def test_what_arrived_damaged_is_sent_again(shared: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    send(shared, there)
    (there / "manifest-1.json").unlink()  # as a push that was cut off before its end
    shard = min((there / "logits").glob("*.parquet"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(data)
    again = send(shared, there)
    assert again["files_moved"] >= 1
    assert bytes_of(there) == bytes_of(shared)


def test_a_signal_stops_it_in_good_order(shared: Path, tmp_path: Path) -> None:
    def interrupt(done: int, whole: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)  # the main thread takes it

    settings = PushConfig(cache=str(shared), location=str(tmp_path / "there"), jobs=1)
    with pytest.raises(Incomplete, match="same command again") as stopped:
        push(settings, step=interrupt)
    assert stopped.value.exit_code == 3
    again = send(shared, tmp_path / "there")
    assert again["files_skipped"] > 0
    assert bytes_of(tmp_path / "there") == bytes_of(shared)


def test_two_pushers_and_a_reader_at_once(shared: Path, make_cache: Maker, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_cache(other, rows_of(8, first=40))
    there, failed, seen = f"memory://{tmp_path}/at-once", [], []
    ended = threading.Event()

    def sender(cache: Path) -> None:
        try:
            send(cache, there, jobs=2)
        except BaseException as error:
            failed.append(error)

    def reader() -> None:
        while not ended.is_set():
            try:
                seen.append(len(list(package.open_cache(there))))
            except (CacheNotFound, UnsealedCache):
                seen.append(0)
            except BaseException as error:
                failed.append(error)
                return

    threads = [threading.Thread(target=sender, args=(one,)) for one in (shared, other)]
    watch = threading.Thread(target=reader)
    for thread in [watch, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    ended.set()
    watch.join()
    assert not failed
    assert seen == sorted(seen), "a newer seal never shows less"
    assert set(seen) <= {0, 8, 12, 20}
    assert len(package.open_cache(there)) == 20
    assert not verify(there).problems


def test_a_cache_that_comes_while_somebody_looks_is_none_or_whole(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after a reader found no cache.json, and before it asks whether there are plans."""
    there, names, looks = tmp_path / "there", Location.names, [0]

    def come_meanwhile(self: Location, folder: str = "") -> list[str]:
        looks[0] += folder == "plans" and self.url == str(there)
        if looks[0] == 2:
            looks[0] += 1
            shutil.copytree(shared, there)
        return names(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Location, "names", come_meanwhile)
        found = read_identity(Location(str(there)))
    assert looks[0] > 2 and found == read_identity(Location(str(shared)))


def test_another_identity_is_refused_field_by_field(
    shared: Path, make_cache: Maker, tmp_path: Path, cachekd: Callable[..., Ran]
) -> None:
    make_cache(tmp_path / "other", rows_of(2), logits_top_k=4)
    before = bytes_of(tmp_path / "other")
    for args in (("push", shared, tmp_path / "other"), ("pull", shared, tmp_path / "other")):
        ran = cachekd(*args)
        assert ran.code == 5
        assert "capture.selection.k: 8 / 4" in ran.err
    assert bytes_of(tmp_path / "other") == before


def test_the_command_prints_one_object(
    shared: Path, tmp_path: Path, cachekd: Callable[..., Ran]
) -> None:
    ran = cachekd("push", shared, tmp_path / "there", "--json")
    assert ran.code == 0, ran.err
    assert {"bytes_moved", "bytes_skipped", "retried", "root"} <= ran.json.keys()
    assert "bytes" in ran.err


def test_errors_are_those_of_the_project(tmp_path: Path) -> None:
    with pytest.raises(CachekdError, match="cachekd precompute"):
        send(tmp_path / "nothing", tmp_path / "there")


def test_what_is_collected_meanwhile_is_not_sealed(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that lay there, that no seal names, goes while the others travel."""
    there = tmp_path / "there"
    left = min((shared / "logits").glob("*.parquet"))
    (there / "logits").mkdir(parents=True)
    (there / "logits" / left.name).write_bytes(left.read_bytes())
    real = Copier.copy

    def collected(self: Copier, blobs: Any) -> None:
        real(self, blobs)
        (there / "logits" / left.name).unlink()

    with monkeypatch.context() as patch:
        patch.setattr(Copier, "copy", collected)
        with pytest.raises(StoreError, match="went away meanwhile"):
            send(shared, there)
    assert not list(there.glob("manifest*"))
    send(shared, there)
    assert bytes_of(there) == bytes_of(shared)


def test_half_of_anothers_push_is_not_sealed(
    shared: Path, make_cache: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cache(tmp_path / "other", rows_of(8, first=40))
    there = tmp_path / "there"
    with monkeypatch.context() as patch:
        patch.setattr("cachekd.sharing.transfer._seal", lambda *args: pytest.fail("cut off"))
        with pytest.raises(pytest.fail.Exception):
            send(tmp_path / "other", there)
    assert list((there / "units").iterdir())
    sent = send(shared, there)
    assert len(package.open_cache(str(there))) == 12
    assert sent["root"] == package.open_cache(str(shared)).root
    assert not verify(str(there)).problems
    send(tmp_path / "other", there)
    assert len(package.open_cache(str(there))) == 20
