"""ls and the catalogue: what is where, and who has which teacher on which data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Family, Ran, write_rows

import cachekd as package
from cachekd.sharing import catalogue, listed
from cachekd.store.io import Location
from cachekd.store.layout import dump_document

from .conftest import Maker, rows_of
from .transfers import HEAD, send

Run = Callable[..., Ran]


@pytest.fixture
def team(shared: Path, make_cache: Maker, tmp_path: Path) -> Path:
    """A location with two caches."""
    make_cache(tmp_path / "other", rows_of(4, first=8), logits_top_k=4)
    for name, cache in (("news", shared), ("few", tmp_path / "other")):
        send(cache, tmp_path / "team" / name)
    return tmp_path / "team"


def test_caches_are_listed_with_what_they_are(team: Path, cachekd: Run, family: Family) -> None:
    ran = cachekd("ls", team, "--json")
    assert ran.code == 0, ran.err
    few, news = ran.json["caches"]
    assert (few["cache"], news["cache"]) == ("few", "news")
    assert news["samples"] == 12 and few["samples"] == 4
    assert news["teacher"] == family.teacher.name and news["data"] == ["data.jsonl"]
    assert news["kinds"] == ["logits"] and news["bytes"] > 0 and news["sealed_at"]
    table = cachekd("ls", team).out
    assert "news" in table and "covered" not in table


def test_who_has_this_teacher_on_this_data(
    team: Path, cachekd: Run, family: Family, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "mine.jsonl", rows_of(12)[4:12])
    asked = ("--teacher", family.teacher, "--data", data, "--tokenizer", family.teacher)
    ran = cachekd("ls", team, "--json", *asked)
    assert ran.code == 0, ran.err
    shares = {one["cache"]: one["covered"] for one in ran.json["caches"]}
    assert shares == {"news": 1.0, "few": 0.5}
    assert "100.0 %" in cachekd("ls", team, *asked).out
    assert {one["known_by"] for one in ran.json["caches"]} == {"name"}, "the dummy has another id"
    source = ran.json["caches"][0]["source_id"]
    exact = cachekd("ls", team, "--json", "--teacher", source).json["caches"]
    assert {one["known_by"] for one in exact} == {"source id"}
    assert cachekd("ls", team, "--json", "--teacher", family.student).json["caches"] == []


def test_an_entry_is_one_file_a_cache_and_follows_its_seal(
    team: Path, make_cache: Maker, shared: Path, tmp_path: Path
) -> None:
    assert len(list((team / "catalogue").glob("*.json"))) == 2
    grown = Path(shutil.copytree(shared, tmp_path / "grown"))
    make_cache(grown, rows_of(14), domain_column="domain", sort_window=1)
    send(grown, team / "news")
    found, problems = catalogue.entries(Location(str(team)))
    assert len(list((team / "catalogue").glob("*.json"))) == 2
    assert not problems
    assert {entry.folder: entry.totals["samples"] for entry in found} == {"news": 14, "few": 4}


def test_a_cache_without_an_entry_is_found_by_its_seal(team: Path, shared: Path) -> None:
    shutil.rmtree(team / "catalogue")
    shutil.copytree(shared, team / "copied")
    (team / "no-cache").mkdir()
    found, problems = catalogue.entries(Location(str(team)))
    assert [entry.folder for entry in found] == ["copied", "few", "news"] and not problems


def test_an_entry_of_a_cache_that_is_gone_is_not_listed(team: Path) -> None:
    shutil.rmtree(team / "few")
    found, _ = catalogue.entries(Location(str(team)))
    assert [entry.folder for entry in found] == ["news"]


def test_a_sketch_tells_about_the_share(team: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Location(str(team))
    monkeypatch.setattr(catalogue, "_SKETCH_KEYS", 6)
    cache = package.open_cache(str(team / "news"))
    assert cache.manifest is not None
    entry = catalogue.entry_of(Location(str(team / "news")), "news", cache.identity, cache.manifest)
    assert 0 < len(entry.sketch) < 12
    keys = cache.samples.keys
    assert listed.covered(place, entry, keys) == {"covered": 1.0, "covered_exactly": True}
    monkeypatch.setattr(listed, "_ENOUGH", 1)
    assert listed.covered(place, entry, keys) == {"covered": 1.0, "covered_exactly": False}


def test_a_place_without_caches_says_so(cachekd: Run, tmp_path: Path) -> None:
    ran = cachekd("ls", tmp_path)
    assert ran.code == 0 and "no sealed cache" in ran.out


def test_a_cache_in_the_place_of_another_has_its_own_entry(
    team: Path, shared: Path, tmp_path: Path
) -> None:
    """Both have generation 1, so that their roots tell which of them lies there."""
    few = {path: path.read_bytes() for path in (team / "catalogue").iterdir()}
    few = {path: data for path, data in few.items() if json.loads(data)["folder"] == "few"}
    shutil.rmtree(team / "few")
    send(shared, team / "few")
    assert len(list((team / "catalogue").iterdir())) == 2, "the old entry went"
    for path, data in few.items():
        path.write_bytes(data)  # as when two pushes pass each other
    found, problems = catalogue.entries(Location(str(team)))
    root = package.open_cache(str(shared)).root
    assert {entry.folder: entry.root for entry in found} == {"few": root, "news": root}
    assert not problems


@pytest.mark.parametrize(
    ("altered", "told"),
    [({"totals": {}}, "lack samples"), ({"totals": {"samples": 1, "tokens": 1}}, "lack bytes")],
)
def test_an_entry_that_lacks_counts_is_told_and_left_out(
    team: Path, cachekd: Run, altered: dict[str, object], told: str
) -> None:
    alter(team, altered)
    ran = cachekd("ls", team, "--json")
    assert ran.code == 0, ran.err
    assert {one["cache"]: one["samples"] for one in ran.json["caches"]} == {"few": 4, "news": 12}
    assert [told in problem for problem in ran.json["left_out"]] == [True]


@pytest.mark.parametrize("clock", ["yesterday", 5, None])
def test_an_entry_with_a_bad_clock_is_not_counted(
    team: Path, cachekd: Run, family: Family, tmp_path: Path, clock: object
) -> None:
    alter(team, {"provenance": {**alter(team, {})["provenance"], "clock": clock}})
    data = write_rows(tmp_path / "mine.jsonl", rows_of(4))
    ran = cachekd("ls", team, "--json", "--data", data, "--tokenizer", family.teacher)
    assert ran.code == 0, ran.err
    by_name = {one["cache"]: one for one in ran.json["caches"]}
    assert "how rows became tokens" in by_name["news"]["not_counted"]
    assert by_name["few"]["covered"] == 0.0


def alter(team: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """The entry of one cache with other values, its checksum right."""
    for path in (team / "catalogue").iterdir():
        document = json.loads(path.read_bytes())
        if document["folder"] == "news":
            own = {key: value for key, value in document.items() if key not in HEAD}
            path.write_bytes(dump_document("catalogue", {**own, **fields}))
            return own
    raise AssertionError("it has an entry")
