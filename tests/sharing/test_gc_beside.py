"""gc beside others who push, pull and merge: nothing that they need goes, nor changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import cachekd
from cachekd.config import GcConfig
from cachekd.errors import DataError, StoreError
from cachekd.sharing import copier
from cachekd.sharing.content import sealed_content
from cachekd.store import collect, compact, gc
from cachekd.store.collect import Garbage
from cachekd.store.io import Location
from cachekd.store.layout import manifest_name
from cachekd.store.manifest import load_seal, read_manifest
from cachekd.store.merge import merge
from cachekd.store.recode import recode
from cachekd.store.remote import RemoteFolder
from cachekd.store.seal import newest_generation, seal, seal_data
from cachekd.store.verify import verify

from .conftest import Maker, rows_of
from .transfers import fetch, send

ALONE = """
import sys
from cachekd.store.claims import alone
from cachekd.store.io import Location

with alone(Location(sys.argv[1])):
    print("alone", flush=True)
    sys.stdin.read()
"""


def clean(place: object, **further: Any) -> dict[str, Any]:
    return gc.collect(GcConfig(cache=str(place), **{"yes": True, **further}))


def age(folder: Path, hours: float) -> None:
    then = time.time() - 3600 * hours
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def samples_at(place: object) -> int:
    return len(list(cachekd.open_cache(str(place))))


@pytest.fixture
def team(shared: Path, tmp_path: Path) -> Path:
    """A place that was compacted; its former shards are old, and nothing names them."""
    place = Path(shutil.copytree(shared, tmp_path / "team"))
    clean(place, compact=True)
    age(place, 30)
    return place


@pytest.mark.parametrize("relied", [None, 1e9])
def test_what_a_push_came_to_need_meanwhile_stays(
    shared: Path, team: Path, monkeypatch: pytest.MonkeyPatch, relied: float | None
) -> None:
    """Whether the push sends old files again or takes them as they are."""
    if relied is not None:
        monkeypatch.setattr(copier, "RELIED_SECONDS", relied)
    found = gc.find_garbage
    pushed: list[dict[str, Any]] = []

    def then_pushed(location: Location, older_than: float, now: float) -> Garbage:
        garbage = found(location, older_than, now)
        pushed.append(send(shared, team))
        return garbage

    monkeypatch.setattr(gc, "find_garbage", then_pushed)
    done = clean(team)
    shards = len(list((shared / "logits").glob("*.parquet")))
    assert (pushed[0]["files_moved"] >= 2 * shards) == (relied is None), "records, and shards"
    assert done["files"] == 2, "only the seal that was superseded long ago, and its index"
    assert not verify(str(team)).problems and samples_at(team) == 12


def test_it_is_looked_again_before_each_few_files(
    shared: Path, team: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copier, "RELIED_SECONDS", 1e9)
    monkeypatch.setattr(collect, "_BATCH", 1)
    real, went = collect.remove_all, list[str]()

    def then_pushed(location: Location, names: Sequence[str]) -> None:
        real(location, names)
        went.extend(names)
        if len(went) == 1:
            send(shared, team)

    monkeypatch.setattr(collect, "remove_all", then_pushed)
    assert clean(team)["files"] == 2
    assert went[0] == manifest_name(1) and went[1].startswith("index/")
    assert not verify(str(team)).problems and samples_at(team) == 12


def test_old_files_that_nothing_names_are_sent_again(shared: Path, team: Path) -> None:
    shard = next(
        path
        for path in (team / "logits").glob("*.parquet")
        if path.name in os.listdir(shared / "logits")
    )
    before = shard.read_bytes()
    moved = send(shared, team)["files_moved"]
    assert moved >= 2 * len(list((shared / "logits").glob("*.parquet"))), "records, and shards"
    assert time.time() - shard.stat().st_mtime < 3600 and shard.read_bytes() == before
    age(team, 30)
    assert send(shared, team)["files_moved"] == 0, "a seal names them"


def test_push_pull_and_merge_wait_for_a_collection_to_end(
    shared: Path, team: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", ALONE, str(team)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        for act in (
            lambda: send(shared, team),
            lambda: fetch(shared, team),
            lambda: merge([str(shared)], str(team)),
            lambda: recode([str(shared)], str(team)),
        ):
            with pytest.raises(StoreError, match="repaired or collected"):
                act()
        other.kill()
    fetch(shared, team)
    assert not list(team.glob(".claims-*"))


def test_a_new_folder_is_claimed_while_a_pull_fills_it(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied, claims = copier.Copier.copy, []

    def looked(self: copier.Copier, blobs: Any) -> None:
        copied(self, blobs)
        claims.extend((tmp_path / "mine").glob(".claims-repair"))

    monkeypatch.setattr(copier.Copier, "copy", looked)
    fetch(shared, tmp_path / "mine")
    assert claims and not list((tmp_path / "mine").glob(".claims-*"))


def _longer(shared: Path, make_cache: Maker, folder: Path) -> Path:
    """The same cache with twelve samples more."""
    more = Path(shutil.copytree(shared, folder / "more"))
    make_cache(more, rows_of(24), domain_column="domain", sort_window=1)
    return more


@pytest.mark.parametrize("between", ["checked_content", "publish", "remove_all"])
def test_what_is_pushed_while_shards_are_united_is_sealed(
    shared: Path,
    make_cache: Maker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    between: str,
) -> None:
    """Before the content of the seal is known, before it is written, and after that."""
    more, place = _longer(shared, make_cache, tmp_path), "memory://beside/" + between
    send(shared, place)
    real: Callable[..., Any] = getattr(compact, between)

    def pushed(*args: Any, **further: Any) -> Any:
        monkeypatch.setattr(compact, between, real)
        send(more, place)
        return real(*args, **further)

    monkeypatch.setattr(compact, between, pushed)
    clean(place, compact=True)
    assert samples_at(place) == 24 and not verify(place).problems
    manifest = read_manifest(Location(place))
    assert manifest is not None and manifest.repaired == ()


def test_a_seal_of_who_looked_before_the_old_records_went_is_followed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, real = Location(str(cache)), compact.remove_all
    before = sealed_content(location).fields()

    def sealed(place: Location, names: Sequence[str]) -> None:
        real(place, names)
        last = newest_generation(location)
        location.create(manifest_name(last + 1), seal_data(before, last + 1))

    monkeypatch.setattr(compact, "remove_all", sealed)
    clean(cache, compact=True)
    assert not verify(str(cache)).problems and samples_at(cache) == 12


def test_what_cannot_be_sealed_is_not_committed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any, **further: Any) -> Any:
        raise DataError("rows that were not captured")

    before = sorted(os.listdir(cache / "units")), sorted(os.listdir(cache / "plans"))
    monkeypatch.setattr(compact, "checked_content", refused)
    with pytest.raises(DataError):
        clean(cache, compact=True)
    assert (sorted(os.listdir(cache / "units")), sorted(os.listdir(cache / "plans"))) == before


def read_from(cache: Path, shard: str) -> set[bytes]:
    """Keys that readers take from a shard."""
    reader = cachekd.open_cache(str(cache))
    index = reader._index
    numbers = index.shards_of(index.keys)
    return {
        key
        for key, number in zip(index.keys, numbers, strict=True)
        if index.shards[number] == shard
    }


def test_keys_are_read_from_the_shard_that_they_were_read_from(
    shared: Path, make_cache: Maker, tmp_path: Path
) -> None:
    """Where a shard that is too large to be united holds keys of small ones too."""
    small = sorted(path.stem for path in (shared / "logits").glob("*.parquet"))
    for extra in range(20):
        make_cache(tmp_path / f"{extra}", rows_of(13 + extra), unit_tokens=10_000)
        (large,) = (path.stem for path in (tmp_path / f"{extra}" / "logits").glob("*.parquet"))
        if small[0] < large < small[-1]:
            break
    both = tmp_path / "both"
    merge([str(shared), str(tmp_path / f"{extra}")], str(both))
    before = read_from(both, large)
    assert 0 < len(before) < 13 + extra
    size = (both / "logits" / f"{large}.parquet").stat().st_size
    done = clean(both, compact=True, target_size=f"{2 * size - 1}B")
    assert done["shards_after"] < done["shards_before"]
    assert read_from(both, large) == before and not verify(str(both)).problems


def test_one_group_of_shards_is_held_at_a_time(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def noted(name: str, real: Callable[..., Any], *args: Any) -> Any:
        order.append(name)
        return real(*args)

    for name in ("read_rows", "write_rows"):
        monkeypatch.setattr(compact, name, partial(noted, name, getattr(compact, name)))
    manifest = read_manifest(Location(str(cache)))
    assert manifest is not None
    most = max(facts.bytes for facts in manifest.shards.values())
    clean(cache, compact=True, target_size=f"{2 * most}B")
    written = order.index("write_rows")
    assert "read_rows" in order[written:], "a shard was written before all were read"


def test_a_seal_asks_for_each_record_once_and_for_no_size(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "memory://beside/asked"
    send(shared, place)
    location, asked = Location(place), list[str]()
    manifest = load_seal(location, 1)
    location.remove(manifest_name(1))
    real = RemoteFolder._call

    def counted(self: RemoteFolder, name: str, call: Any, **further: bool) -> Any:
        asked.append(name)
        return real(self, name, call, **further)

    monkeypatch.setattr(RemoteFolder, "_call", counted)
    assert seal(location).files == manifest.files
    units = [name for name in asked if name.startswith("units/")]
    assert units and len(units) == len(set(units))
    assert not [name for name in asked if name.endswith(".parquet") and "logits" in name]
