"""precompute --reuse: what others have captured is taken, only the rest is scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny import Family, Ran, write_rows

import cachekd as package
from cachekd.errors import CacheNotFound, ConfigError
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


def test_records_that_may_lack_rows_are_refused(tmp_path: Path) -> None:
    settings = {"teacher": "t", "data": ("d",), "cache": "c", "reuse": str(tmp_path)}
    with pytest.raises(ConfigError, match="response rows alone"):
        package.PrecomputeConfig(**settings, rows="response")
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
