"""merge: shards are copied byte for byte, other identities refused field by field."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damage import flip
from harness import ran
from tiny import Ran

import cachekd as package
from cachekd.errors import CorruptCache
from cachekd.store.merge import merge
from cachekd.store.recode import recode
from cachekd.store.verify import verify

from .conftest import Maker, rows_of
from .transfers import bytes_of


def shards_of(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (cache / "logits").glob("*.parquet")}


def test_shards_are_copied_byte_for_byte(shared: Path, make_cache: Maker, tmp_path: Path) -> None:
    other, both = tmp_path / "other", tmp_path / "both"
    make_cache(other, rows_of(8, first=10), domain_column="domain")  # two rows are in both
    before = [bytes_of(cache) for cache in (shared, other)]
    merge([str(shared), str(other)], str(both))
    assert shards_of(both) == {**shards_of(shared), **shards_of(other)}
    assert [bytes_of(cache) for cache in (shared, other)] == before
    united = package.open_cache(str(both))
    assert len(united) == 18
    for source in (shared, other):
        for record in package.open_cache(str(source)):
            met = united.get(record.input_ids)
            np.testing.assert_array_equal(met.logits.tail, record.logits.tail)
            np.testing.assert_array_equal(met.logits.logprobs, record.logits.logprobs)
    assert not verify(str(both)).problems


def test_shards_of_units_that_are_there_already_are_not_copied(
    cache: Path, shared: Path, tmp_path: Path
) -> None:
    """The same plan, captured with other bytes."""
    recode([str(shared)], str(tmp_path / "other"))
    before = bytes_of(cache)
    merge([str(tmp_path / "other")], str(cache))
    assert bytes_of(cache) == before


def test_a_cache_into_itself_and_again_changes_nothing(cache: Path, shared: Path) -> None:
    before = bytes_of(cache)
    merge([str(shared)], str(cache))
    assert bytes_of(cache) == before


def test_another_identity_is_refused_field_by_field(
    shared: Path, make_cache: Maker, tmp_path: Path, cachekd: Callable[..., Ran]
) -> None:
    make_cache(tmp_path / "other", rows_of(2), logits_top_k=4, logits_values="float32")
    ran = cachekd("merge", shared, tmp_path / "other", "--out", tmp_path / "both")
    assert ran.code == 5
    for line in (
        "capture.selection.k: 8 / 4",
        "capture.logprobs.values: 'float16' / 'float32'",
    ):
        assert line in ran.err
    assert "capture.temperatures" not in ran.err, "only what differs is told"
    assert not (tmp_path / "both").exists()
    target = tmp_path / "target"
    shutil.copytree(tmp_path / "other", target)
    before = bytes_of(target)
    ran = cachekd("merge", shared, "--out", target)
    assert ran.code == 5 and "capture.selection.k: 8 / 4" in ran.err
    assert bytes_of(target) == before


def test_a_shard_that_is_altered_is_not_taken(cache: Path, tmp_path: Path) -> None:
    shard = min((cache / "logits").glob("*.parquet"))
    flip(shard)
    with pytest.raises(CorruptCache, match=shard.name):
        merge([str(cache)], str(tmp_path / "both"))
    assert not (tmp_path / "both" / "logits" / shard.name).exists()
    assert not list((tmp_path / "both").glob("manifest*"))


@pytest.mark.reliability
def test_killed_at_some_changes_of_the_disk() -> None:
    """By the system: there is no union before its seal, and the same command ends the work."""
    found = ran("share_kills.py", "merge", "--step", 23)
    assert found["done"] == -(-found["changes"] // 23) > 5
