"""A dataset on S3 is read as a local one, in this process and in workers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from runs import capture
from s3_faults import Bucket
from tiny import Family
from torch.utils.data import DataLoader

from cachekd.training.loader import CacheDataset
from cachekd.training.order import EpochSampler, Order


@pytest.mark.reliability
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_samples_in_the_same_order(
    family: Family,
    data: Path,
    s3: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    monkeypatch.setenv("CACHEKD_LOCAL_CACHE", str(tmp_path / "held"))
    cache = tmp_path / "cache"
    capture(family, data, cache, backend="dummy", unit_tokens=200, batch_tokens=100)
    for path in cache.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            s3.put(f"cache/{path.relative_to(cache)}", path.read_bytes())

    def read(url: str) -> list[bytes]:
        dataset = CacheDataset(url, order=Order(shuffle_shards=2))
        loader = DataLoader(
            dataset,
            batch_size=4,
            sampler=EpochSampler(dataset, 7),
            num_workers=workers,
            collate_fn=list,
        )
        return [
            record.key + record.logits.logprobs.tobytes() for batch in loader for record in batch
        ]

    local = read(str(cache))
    assert read(s3.url()) == local and len(local) == 30
    shutil.rmtree(tmp_path / "held")
    assert read(s3.url()) == local, "what was held went away meanwhile"
