"""ls and the catalogue: what is where, and who has which teacher on which data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import Family, Ran, write_rows

import cachekd as package
from cachekd.sharing import catalogue, listed
from cachekd.store.io import Location

from .conftest import Maker, rows_of
from .transfers import send

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
