"""Caches on a real S3 server over HTTP, with what networks do in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3_faults import Bucket, Fault
from tiny import chat_rows

import cachekd
from cachekd.store import retries
from cachekd.store.io import Location
from cachekd.store.verify import verify

Maker = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Waits are short, and the local cache is the test's own."""
    monkeypatch.setattr(retries, "FIRST_SECONDS", 0.001)
    monkeypatch.setattr(retries, "MOST_SECONDS", 0.01)
    monkeypatch.setenv("CACHEKD_LOCAL_CACHE", str(tmp_path / "local"))


def test_a_whole_round(s3: Bucket, make_cache: Maker, sealed: Path) -> None:
    report = make_cache(s3.url(), chat_rows(9))
    cache = cachekd.open_cache(s3.url())
    assert len(cache) == 9 and cache.root == report["root"]
    on_disk = cachekd.open_cache(str(sealed))
    for record in cache:
        other = on_disk.get(record.input_ids).logits
        assert record.logits.logprobs.tobytes() == other.logprobs.tobytes()
    assert verify(s3.url()).problems == () and verify(s3.url()).records == 9
    assert all(".probe" not in key for key in s3.objects())
