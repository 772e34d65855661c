"""Parts of a cache: by keys, domain or share; completed, merged and recoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import Ran, write_rows

import cachekd as package
from cachekd.sharing.content import part_of, sealed_content
from cachekd.sharing.copier import Copier
from cachekd.store.io import Location
from cachekd.store.merge import merge
from cachekd.store.state import load_unit
from cachekd.store.verify import verify

from .conftest import Maker, rows_of
from .transfers import bytes_of, fetch, send


def test_a_part_by_domain(shared: Path, tmp_path: Path) -> None:
    report = fetch(shared, tmp_path / "part", domain=("law",))
    assert report["shards"] < report["shards_of"]
    assert report["bytes"] < report["bytes_of_shards_at_origin"]
    part = package.open_cache(str(tmp_path / "part"))
    whole = package.open_cache(str(shared))
    law = [
        key for key, name in zip(whole.samples.keys, whole.domains, strict=True) if name == "law"
    ]
    assert set(law) <= set(part.samples.keys)
    assert not verify(str(tmp_path / "part")).problems
    assert part.manifest is not None
    (origin,) = part.manifest.origins
    assert origin["root"] == whole.root and origin["domains"] == ["law"]
    assert origin["cache"] == "cache", "a path tells about a machine"


def test_a_part_by_fraction_is_seeded_and_grows(shared: Path, tmp_path: Path) -> None:
    first = fetch(shared, tmp_path / "a", fraction=0.4, seed=3)
    same = fetch(shared, tmp_path / "b", fraction=0.4, seed=3)
    assert first["root"] == same["root"] != package.open_cache(str(shared)).root
    whole = fetch(shared, tmp_path / "a")
    assert whole["root"] == package.open_cache(str(shared)).root
    assert whole["bytes_moved"] < sum(map(len, bytes_of(shared).values()))


def test_a_part_by_the_rows_of_a_file(
    shared: Path, family: Any, tmp_path: Path, cachekd: Callable[..., Ran]
) -> None:
    data = write_rows(tmp_path / "mine.jsonl", rows_of(12)[3:5])
    ran = cachekd(
        *("pull", shared, tmp_path / "part", "--json", "--keys-from", data),
        *("--tokenizer", family.teacher),
    )
    assert ran.code == 0, ran.err
    assert (ran.json["records_wanted"], ran.json["records_found"]) == (2, 2)
    assert ran.json["shards"] <= 2
    assert cachekd("verify", tmp_path / "part").code == 0


def test_of_a_part_only_its_own_commit_records_are_read(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = Location.read

    def read(place: Location, name: str, most: int | None = None) -> bytes:
        if place.url.endswith("/news") and name.startswith("units/"):
            asked.append(name)
        return real(place, name, most)

    send(shared, f"memory://{tmp_path}/team/news")
    monkeypatch.setattr(Location, "read", read)
    report = fetch(f"memory://{tmp_path}/team/news", tmp_path / "part", fraction=0.2, seed=1)
    units = list((tmp_path / "part" / "units").iterdir())
    assert report["shards"] == len(units) < report["shards_of"]
    assert {Path(name).name for name in asked} == {path.name for path in units}


def test_a_shard_that_nobody_reads_from_comes_with_its_record(
    shared: Path, make_cache: Maker, tmp_path: Path
) -> None:
    """In a union of two captures of the same rows one shard of each key is in force."""
    make_cache(tmp_path / "other", rows_of(12), domain_column="domain", unit_tokens=10_000)
    merge([str(shared), str(tmp_path / "other")], str(tmp_path / "both"))
    whole = sealed_content(Location(str(tmp_path / "both")))
    index = whole.index()
    read = {index.shards[int(shard)] for shard in index.shards_of(index.keys)}
    unread = whole.manifest.shards.keys() - read
    assert unread
    copier = Copier(whole.location, whole.location, 1)
    for shards in (unread, whole.manifest.shards.keys(), {min(unread), min(read)}):
        part = part_of(whole, shards, {}, copier.read_all)
        named = [name for name in part.documents if name.startswith("units/")]
        records = [load_unit(name, whole.location.read(name)) for name in named]
        assert {record.shard.digest for record in records} == set(shards)


def test_rows_that_cannot_be_used_are_counted(
    shared: Path, family: Any, tmp_path: Path, cachekd: Callable[..., Ran]
) -> None:
    bad = [{"instruction": "x", "output": None}] * 5
    data = write_rows(tmp_path / "mine.jsonl", [*rows_of(2), *bad])
    send(shared, tmp_path / "team" / "news")
    asked = ("--json", "--tokenizer", family.teacher)
    part = cachekd("pull", shared, tmp_path / "part", "--keys-from", data, *asked)
    assert part.code == 0, part.err
    assert (part.json["records_wanted"], part.json["rows_skipped"]) == (2, 5)
    (line,) = cachekd("ls", tmp_path / "team", "--data", data, *asked).json["caches"]
    assert (line["covered"], line["rows_skipped"]) == (1.0, 5)
    table = cachekd("ls", tmp_path / "team", "--data", data, *asked[1:]).out
    assert "100.0 % (without 5 rows" in table


def test_attention_travels_beside_its_logits(attentive: Path, tmp_path: Path) -> None:
    send(attentive, tmp_path / "there")
    assert bytes_of(tmp_path / "there") == bytes_of(attentive)
    part = fetch(attentive, tmp_path / "part", fraction=0.5)
    assert part["attention_shards"] == part["shards"] > 0
    assert not verify(str(tmp_path / "part")).problems


def test_a_partial_cache_is_completed_by_precompute(
    shared: Path, make_cache: Maker, tmp_path: Path
) -> None:
    part = tmp_path / "part"
    fetch(shared, part, fraction=0.4)
    done = make_cache(part, rows_of(12), domain_column="domain", sort_window=1)
    assert done["keys"] == 12
    whole = package.open_cache(str(shared))
    mine = package.open_cache(str(part))
    assert done["root"] == whole.root
    np.testing.assert_array_equal(mine[5].logits.ids, whole[5].logits.ids)


def test_two_parts_are_merged_and_recoded(
    shared: Path, tmp_path: Path, cachekd: Callable[..., Ran]
) -> None:
    for name in ("law", "code"):
        fetch(shared, tmp_path / name, domain=(name,))
    ran = cachekd(
        "merge", tmp_path / "law", tmp_path / "code", "--out", tmp_path / "both", "--json"
    )
    assert ran.code == 0, ran.err
    assert ran.json["root"] == package.open_cache(str(shared)).root
    again = cachekd("merge", tmp_path / "law", "--recode", "--out", tmp_path / "small", "--json")
    assert again.code == 0, again.err
    assert again.json["samples"] == len(package.open_cache(str(tmp_path / "law")))
    assert cachekd("verify", tmp_path / "small").code == 0
