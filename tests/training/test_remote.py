"""A dataset on S3 is read as a local one, in this process and in workers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from runs import capture
from s3_faults import Bucket
from tiny import Family
from torch.utils.data import DataLoader

from cachekd.store.local_cache import LOCK
from cachekd.training.loader import CacheDataset
from cachekd.training.order import EpochSampler, Order


@pytest.fixture
def cache(family: Family, data: Path, s3: Bucket, tmp_path: Path) -> Path:
    """Thirty samples in several shards, in a folder and in the bucket."""
    cache = tmp_path / "cache"
    capture(family, data, cache, backend="dummy", unit_tokens=200, batch_tokens=100)
    for path in cache.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            s3.put(f"cache/{path.relative_to(cache)}", path.read_bytes())
    return cache


def epoch(url: str, window: int, workers: int) -> list[bytes]:
    """An epoch of all samples, by their keys and targets."""
    dataset = CacheDataset(url, order=Order(shuffle_shards=window))
    loader = DataLoader(
        dataset,
        batch_size=4,
        sampler=EpochSampler(dataset, 7),
        num_workers=workers,
        collate_fn=list,
    )
    return [record.key + record.logits.logprobs.tobytes() for batch in loader for record in batch]


@pytest.mark.reliability
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_samples_in_the_same_order(
    cache: Path, s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setenv("CACHEKD_LOCAL_CACHE", str(tmp_path / "held"))
    local = epoch(str(cache), 2, workers)
    assert epoch(s3.url(), 2, workers) == local and len(local) == 30
    shutil.rmtree(tmp_path / "held")
    assert epoch(s3.url(), 2, workers) == local, "what was held went away meanwhile"


@pytest.mark.reliability
@pytest.mark.parametrize(("window", "workers"), [(0, 0), (0, 2), (2, 0), (2, 2)])
def test_a_cache_that_is_larger_than_the_bound(
    cache: Path,
    s3: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    window: int,
    workers: int,
) -> None:
    """Files are taken away while workers read: samples are the same, and the bound holds."""
    sizes = [path.stat().st_size for path in (cache / "logits").glob("*.parquet")]
    limit = 3 * max(sizes)
    assert sum(sizes) > 1.5 * limit
    monkeypatch.setenv("CACHEKD_LOCAL_CACHE", str(tmp_path / "held"))
    monkeypatch.setenv("CACHEKD_LOCAL_CACHE_SIZE", str(limit))
    assert epoch(s3.url(), window, workers) == epoch(str(cache), window, workers)
    held = sum(path.stat().st_size for path in (tmp_path / "held").iterdir() if path.name != LOCK)
    assert limit - max(sizes) < held <= limit, "it is used, and never more of it"
    asked = [one for one in s3.proxy.seen if one.method == "GET" and ".parquet" in one.path]
    fetched = sum("/logits/" in one.path for one in asked)
    if window and not workers:
        assert fetched == len(sizes), "each shard once"
    else:
        assert fetched >= len(sizes)
