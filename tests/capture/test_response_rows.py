"""Captures of response rows only: equal token ids with other roles must not lose rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import Family, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.errors import DataError
from cachekd.store.merge import merge

IDS = [40, 50, 60, 70, 80, 90, 100, 110]


def capture(family: Family, folder: Path, name: str, first_label: int) -> str:
    """A cache of one document whose labels begin at a token."""
    labels = [-100] * first_label + IDS[first_label:]
    data = write_rows(folder / f"{name}.jsonl", [{"input_ids": IDS, "labels": labels}])
    cache = str(folder / name)
    cachekd.precompute(
        PrecomputeConfig(
            teacher=str(family.teacher), data=(str(data),), cache=cache, rows="response", threads=1
        )
    )
    return cache


def test_a_union_that_would_lose_rows_is_refused(family: Family, tmp_path: Path) -> None:
    """Both orders: whichever record the union would use, a sample needs what it lacks or not."""
    few, many = (capture(family, tmp_path, f"from-{n}", n) for n in (6, 2))
    shards = {name: next(Path(name, "logits").glob("*.parquet")).name for name in (few, many)}
    target = str(tmp_path / "both")
    if shards[few] < shards[many]:  # the lower digest is used, and it has fewer rows
        with pytest.raises(DataError, match="1 samples train on rows that were not captured"):
            merge([few, many], target)
        return
    merge([few, many], target)
    for record in cachekd.open_cache(target):
        assert record.logits.offsets[-1] > 0 and (record.logits.offsets[2:] > 0).all()


def test_a_sample_that_needs_more_rows_is_refused(family: Family, tmp_path: Path) -> None:
    cache = capture(family, tmp_path, "cache", 6)
    wider = write_rows(
        tmp_path / "wider.jsonl", [{"input_ids": IDS, "labels": [-100, -100, *IDS[2:]]}]
    )
    with pytest.raises(DataError, match="--rows all"):
        cachekd.precompute(
            PrecomputeConfig(
                teacher=str(family.teacher), data=(str(wider),), cache=cache, rows="response"
            )
        )
    assert len(cachekd.open_cache(cache)) == 1


def test_a_wider_loss_mask_than_was_captured_is_refused_at_the_start(
    family: Family, tmp_path: Path
) -> None:
    from cachekd.data.alignment import LossMask
    from cachekd.errors import MismatchError

    turns = [("user", "the cat"), ("assistant", "sleeps"), ("user", "and the dog")]
    row = {
        "prompt": [{"role": role, "content": text} for role, text in turns],
        "completion": [{"role": "assistant", "content": "runs"}],
    }
    cache = str(tmp_path / "cache")
    data = write_rows(tmp_path / "chat.jsonl", [row])
    cachekd.precompute(
        PrecomputeConfig(
            teacher=str(family.teacher), data=(str(data),), cache=cache, rows="response"
        )
    )
    assert len(cachekd.CacheDataset(cache)) == 1
    with pytest.raises(MismatchError, match="assistant tokens are to be trained"):
        cachekd.CacheDataset(cache, loss_mask=LossMask.ASSISTANT)
