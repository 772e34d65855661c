"""Looking at a whole cache: few operations however many units, and the same findings as before."""

from __future__ import annotations

import logging
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import Family, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.data.packed import Keys
from cachekd.plugins import available, find
from cachekd.store import disk
from cachekd.store.index import build_index
from cachekd.store.io import Location
from cachekd.store.state import read_state


def _capture(family: Family, folder: Path, units: int) -> Location:
    data = write_rows(
        folder / f"{units}.jsonl", [{"input_ids": [i, i + 1, i + 2]} for i in range(10, 10 + units)]
    )
    cachekd.precompute(
        PrecomputeConfig(
            teacher=str(family.teacher),
            backend="dummy",
            data=(str(data),),
            cache=str(folder / str(units)),
            batch_tokens=1,
            unit_tokens=1,
            threads=1,
        )
    )
    return Location(str(folder / str(units)))


@pytest.fixture(scope="module")
def caches(family: Family, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Location]:
    folder = tmp_path_factory.mktemp("scan")
    return {units: _capture(family, folder, units) for units in (2, 12)}


def _counted(name: str, count: Counter[str]) -> Callable[..., Any]:
    operation = getattr(disk, name)

    def counted(*arguments: Any) -> Any:
        count[name] += 1
        return operation(*arguments)

    return counted


def _operations(location: Location, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    count: Counter[str] = Counter()
    with monkeypatch.context() as patched:
        for name in ("open_folder", "open_old", "names"):
            patched.setattr(disk, name, _counted(name, count))
        read_state(location, skip_broken_units=True)
    return count


def test_a_resume_opens_a_file_a_unit_and_no_folder_more(
    caches: dict[int, Location], monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (_operations(caches[units], monkeypatch) for units in (2, 12))
    assert many["open_old"] - few["open_old"] == 10, "each record is read once, and nothing else"
    assert many["open_folder"] == few["open_folder"] and many["names"] == few["names"]


@pytest.mark.parametrize("what", ["shard", "record"])
def test_a_resume_finds_what_is_lost_or_altered_among_many_units(
    caches: dict[int, Location], tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    location = _copied(caches[12], tmp_path)
    before = read_state(location, skip_broken_units=True)
    lost = sorted(before.units)[5]
    if what == "shard":
        location.remove(before.units[lost].files()[0])
    else:
        path = Path(location.url, "units", f"{lost[0]}-{lost[1]}.json")
        path.write_text(path.read_text().replace('"entries": ', '"entries": 1'))
    with caplog.at_level(logging.WARNING):
        after = read_state(location, skip_broken_units=True)
    assert before.units.keys() - after.units.keys() == {lost}
    assert after.missing_units(lost[0]) == [lost[1]]
    assert f"{lost[0]}-{lost[1]}.json" in caplog.text and "made anew" in caplog.text


def _copied(location: Location, folder: Path) -> Location:
    shutil.copytree(location.url, folder / "copy")
    return Location(str(folder / "copy"))


def test_a_cache_in_memory_is_scanned_as_one_on_the_disk(caches: dict[int, Location]) -> None:
    there = Location("memory://scanned")
    for folder in ("", "plans", "units", "logits", "priors"):
        for name in caches[12].names(folder):
            path = f"{folder}/{name}" if folder else name
            there.create(path, caches[12].read(path))
    units = read_state(there, skip_broken_units=True).units
    assert units == read_state(caches[12], skip_broken_units=True).units and len(units) == 12
    there.remove(next(iter(units.values())).files()[0])
    assert len(read_state(there, skip_broken_units=True).units) == 11


@given(
    held=st.sets(st.binary(min_size=16, max_size=16), max_size=20),
    asked=st.sets(st.binary(min_size=16, max_size=16), max_size=20),
    twins=st.booleans(),
)
def test_an_index_tells_which_keys_it_holds(
    held: set[bytes], asked: set[bytes], twins: bool
) -> None:
    if twins:  # keys that differ only in their second half, and end in zeros
        held |= {key[:8] + bytes([i]) * 2 + bytes(6) for key in held for i in range(2)}
    index = build_index({"0a" * 32: sorted(held)})
    keys = Keys.of([*asked, *held])
    assert index.holds(keys).tolist() == [key in held for key in keys]
    own = Keys.of(sorted(held))
    assert (index.shards_of(own) == 0).all() and len(index.shards_of(own)) == len(held)


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=20))
def test_heads_are_in_the_order_of_their_digests(digests: list[bytes]) -> None:
    ordered = Keys.of(sorted(digests))
    assert ordered.heads.tolist() == sorted(ordered.heads.tolist())
    assert ordered.heads.tolist() == [int.from_bytes(key[:8], "big") for key in ordered]


def test_a_plugin_that_is_installed_meanwhile_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "late" not in available("chunkers")
    info = tmp_path / "late-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: late\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cachekd.chunkers]\nlate = late_chunker:PLUGIN\n")
    (tmp_path / "late_chunker.py").write_text("PLUGIN = 'late'\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert find("chunkers", "late") == "late" and "late" in available("chunkers")
