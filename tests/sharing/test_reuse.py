"""precompute --reuse: what others have captured is taken, only the rest is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import Family, Ran, write_rows

import cachekd as package
from cachekd.errors import CacheNotFound, ConfigError
from cachekd.sharing import copier
from cachekd.sharing import reuse as reusing
from cachekd.sharing.content import sealed_content
from cachekd.store.io import Location
from cachekd.store.listing import Entry
from cachekd.store.merge import merge
from cachekd.store.verify import verify
from cachekd.types import TopKLogits

from .conftest import Maker, rows_of
from .transfers import send


def same(cache: Path, whole: Path) -> None:
    """Whether a cache holds the samples of another, with the same targets."""
    mine, theirs = package.open_cache(str(cache)), package.open_cache(str(whole))
    assert mine.sample_ids == theirs.sample_ids
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(one.input_ids, other.input_ids)
        np.testing.assert_array_equal(one.logits.logprobs, other.logits.logprobs)
        for targets in (one.logits, other.logits):  # what is equally likely has no order
            targets.ids[:] = targets.ids[
                np.lexsort((targets.ids, -targets.logprobs, rows(targets)))
            ]
        np.testing.assert_array_equal(one.logits.ids, other.logits.ids)


def rows(targets: TopKLogits) -> np.ndarray:
    """Row of each entry."""
    counts = np.diff(targets.offsets)
    return np.repeat(np.arange(len(counts)), counts)


def test_only_the_rest_is_scored(shared: Path, make_cache: Maker, tmp_path: Path) -> None:
    team = tmp_path / "team"
    send(shared, team / "news")
    rows = [*rows_of(12)[2:10], *rows_of(16)[12:]]
    made = make_cache(tmp_path / "mine", rows, reuse=str(team))
    assert (made["records_reused"], made["documents_to_score"]) == (8, 4)
    make_cache(tmp_path / "alone", rows)
    same(tmp_path / "mine", tmp_path / "alone")
    assert not verify(str(tmp_path / "mine")).problems


def test_records_without_text_get_that_of_the_run(
    shared: Path, make_cache: Maker, tmp_path: Path
) -> None:
    send(shared, tmp_path / "bare", keys_only=True)
    rows = [*rows_of(12)[2:10], *rows_of(16)[12:]]
    made = make_cache(tmp_path / "mine", rows, reuse=str(tmp_path / "bare"))
    assert (made["records_reused"], made["documents_to_score"]) == (8, 4)
    make_cache(tmp_path / "alone", rows)
    same(tmp_path / "mine", tmp_path / "alone")
    assert not verify(str(tmp_path / "mine")).problems


def test_folders_are_listed_once_whatever_the_number_of_shards(
    shared: Path, make_cache: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = copier.listings

    def listings(location: Location, folders: Iterable[str]) -> dict[str, Entry]:
        named = list(folders)
        seen.extend(named)
        return real(location, named)

    monkeypatch.setattr(copier, "listings", listings)
    made = make_cache(tmp_path / "mine", rows_of(12), reuse=str(shared))
    assert made["records_reused"] == 12 and made["shards"] > 3
    assert max(map(seen.count, seen)) == 2, "before the copy, and after it"


def test_another_cache_that_came_meanwhile_is_not_taken(
    shared: Path, make_cache: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reusing, "caches_of", lambda url, identity: [Location(url)])
    made = make_cache(tmp_path / "mine", rows_of(2), reuse=str(shared), logits_top_k=4)
    assert made["records_reused"] == 0 and made["documents_to_score"] == 2
    assert len(list((tmp_path / "mine" / "logits").glob("*.parquet"))) == made["shards"]


def test_when_all_is_there_no_teacher_is_loaded(
    shared: Path, make_cache: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cachekd.capture.worker.load_teacher", lambda job: pytest.fail("the teacher was loaded")
    )
    made = make_cache(tmp_path / "mine", rows_of(12), reuse=str(shared))
    assert made["records_reused"] == 12 and made["samples"] == 12
    assert not verify(str(tmp_path / "mine")).problems


def test_a_shard_of_which_little_is_wanted_is_cut(make_cache: Maker, tmp_path: Path) -> None:
    make_cache(tmp_path / "one-shard", rows_of(12), unit_tokens=10_000)
    made = make_cache(tmp_path / "mine", rows_of(12)[:2], reuse=str(tmp_path / "one-shard"))
    assert made["records_reused"] == 2 and made["keys"] == 2
    assert made["bytes"] < made["bytes_reused"]
    assert not verify(str(tmp_path / "mine")).problems


def test_attention_is_reused_too(attentive: Path, family: Family, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", rows_of(5))
    report = package.precompute(
        package.PrecomputeConfig(
            teacher=str(family.teacher),
            data=(str(data),),
            cache=str(tmp_path / "mine"),
            attention="maps",
            logits_top_k=8,
            threads=1,
            reuse=str(attentive),
        )
    )
    assert report["records_reused"] == 4 and report["attention_shards"] > 1
    assert not verify(str(tmp_path / "mine")).problems


def test_caches_of_another_capture_are_not_taken(
    shared: Path, make_cache: Maker, tmp_path: Path
) -> None:
    made = make_cache(tmp_path / "mine", rows_of(2), reuse=str(shared), logits_top_k=4)
    assert made["records_reused"] == 0 and made["documents_to_score"] == 2
    assert "no cache of this teacher" in made["reused_from"]


def test_a_place_without_caches_is_refused(make_cache: Maker, tmp_path: Path) -> None:
    with pytest.raises(CacheNotFound, match="reuse: no sealed cache"):
        make_cache(tmp_path / "mine", rows_of(2), reuse=str(tmp_path / "nothing"))


def test_response_rows_are_reused(make_cache: Maker, tmp_path: Path) -> None:
    settings = {"rows": "response", "unit_tokens": 10_000}
    make_cache(tmp_path / "theirs", rows_of(12), **settings)
    rows = [*rows_of(12)[2:10], *rows_of(16)[12:]]
    made = make_cache(tmp_path / "mine", rows, reuse=str(tmp_path / "theirs"), **settings)
    assert (made["records_reused"], made["documents_to_score"]) == (8, 4)
    make_cache(tmp_path / "alone", rows, **settings)
    same(tmp_path / "mine", tmp_path / "alone")
    assert made["keys"] == 12, "no record comes that nobody asked for: its rows may be too few"
    assert not verify(str(tmp_path / "mine")).problems


IDS = list(range(40, 120, 10))


def labelled(first: int) -> dict[str, list[int]]:
    """One text whose response begins at a token."""
    return {"input_ids": IDS, "labels": [-100] * first + IDS[first:]}


@pytest.mark.parametrize(("theirs", "mine", "reused"), [(2, 6, 1), (6, 6, 1), (6, 2, 0)])
def test_a_record_that_lacks_rows_is_scored(
    make_cache: Maker, tmp_path: Path, theirs: int, mine: int, reused: int
) -> None:
    make_cache(tmp_path / "theirs", [labelled(theirs)], rows="response")
    made = make_cache(
        tmp_path / "mine", [labelled(mine)], rows="response", reuse=str(tmp_path / "theirs")
    )
    assert (made["records_reused"], made["documents_to_score"]) == (reused, 1 - reused)
    (record,) = package.open_cache(str(tmp_path / "mine"))
    captured = np.diff(record.logits.offsets) > 0
    assert captured.tolist() == [
        row + 1 >= min(theirs if reused else mine, mine) for row in range(7)
    ]
    assert not verify(str(tmp_path / "mine")).problems


def test_of_two_records_of_a_text_that_in_force_is_taken(make_cache: Maker, tmp_path: Path) -> None:
    """A united cache holds both, in shards with others; its index tells which one a reader sees."""
    settings = {"rows": "response", "unit_tokens": 10_000}
    make_cache(tmp_path / "wide", [labelled(2), *rows_of(3)], **settings)
    (wide,) = sealed_content(Location(str(tmp_path / "wide"))).manifest.shards
    for first in range(10, 100, 10):
        narrow, beside = tmp_path / f"narrow-{first}", rows_of(3, first)
        make_cache(narrow, [labelled(6), *beside], **settings)
        if wide < min(sealed_content(Location(str(narrow))).manifest.shards):
            break  # of two shards with a key that with the lower digest is in force
    merge([str(tmp_path / "wide"), str(narrow)], str(tmp_path / "both"))
    wanted = [labelled(2), *rows_of(3), *beside]
    made = make_cache(tmp_path / "mine", wanted, reuse=str(tmp_path / "both"), **settings)
    assert made["records_reused"] == made["keys"] == 7
    shards = sealed_content(Location(str(tmp_path / "mine"))).manifest.shards.values()
    assert sum(facts.rows for facts in shards) == 7, "the other record does not come"
    (record,) = (
        one for one in package.open_cache(str(tmp_path / "mine")) if one.input_ids.tolist() == IDS
    )
    assert (np.diff(record.logits.offsets)[1:] > 0).all()
    assert not verify(str(tmp_path / "mine")).problems


def test_attention_of_response_rows_is_reused(family: Family, tmp_path: Path) -> None:
    def capture(name: str, rows: list[dict[str, Any]], **further: Any) -> dict[str, Any]:
        config = package.PrecomputeConfig(
            teacher=str(family.teacher),
            data=(str(write_rows(tmp_path / f"{name}.jsonl", rows)),),
            cache=str(tmp_path / name),
            attention="maps",
            attention_rows="response",
            attention_row_share=0.5,
            logits_top_k=8,
            threads=1,
            batch_tokens=1,
            **further,
        )
        return package.precompute(config)

    capture("theirs", rows_of(4))
    made = capture("mine", rows_of(5), reuse=str(tmp_path / "theirs"))
    assert made["records_reused"] == 4
    capture("alone", rows_of(5))
    mine, alone = (package.open_cache(str(tmp_path / name)) for name in ("mine", "alone"))
    for one, other in zip(mine, alone, strict=True):
        np.testing.assert_array_equal(one.attention.rows, other.attention.rows)
        np.testing.assert_array_equal(one.attention.probs, other.attention.probs)
    assert not verify(str(tmp_path / "mine")).problems


def test_responses_that_are_to_be_written_are_nobodys(tmp_path: Path) -> None:
    settings = {"teacher": "t", "data": ("d",), "cache": "c", "reuse": str(tmp_path)}
    with pytest.raises(ConfigError, match="still to be written"):
        package.PrecomputeConfig(**settings, generate="greedy")


def test_it_is_a_flag(
    shared: Path, family: Family, tmp_path: Path, cachekd: Callable[..., Ran]
) -> None:
    data = write_rows(tmp_path / "data.jsonl", rows_of(3))
    ran = cachekd(
        *("precompute", "--teacher", family.teacher, "--backend", "dummy", "--data", data),
        *("--cache", tmp_path / "mine", "--logits-top-k", 8, "--reuse", shared, "--json"),
    )
    assert ran.code == 0, ran.err
    assert ran.json["records_reused"] == 3
