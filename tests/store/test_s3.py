"""Caches on a real S3 server over HTTP, with what networks do in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3 import SECRET
from s3_faults import Bucket, Fault
from tiny import chat_rows

import cachekd
from cachekd.errors import StoreError
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
    # Without the right to list, what is not there is refused.
    refused = [("GET", "list-type=2"), ("HEAD", "manifest-2")]
    s3.proxy.plan[:] = [Fault("403", method, match, times=None) for method, match in refused]
    assert len(cachekd.open_cache(s3.url())) == 9 and s3.proxy.faults()["403"]


def faults() -> list[Fault]:
    """One or two of each kind that a network and a server have, on what a capture writes."""
    return [
        Fault("503", "PUT", "/units/", times=2),
        Fault("500", "PUT", "/logits/"),
        Fault("409", "PUT", "/samples/"),
        Fault("reset", "PUT", "/logits/", at=50),
        Fault("lost", "PUT", "/units/"),
        Fault("twice", "PUT", "/logits/"),
        Fault("cut", "GET", "/plans/", at=10),
        Fault("flip", "GET", "/units/"),
        Fault("stale", "GET", "list-type=2.*units", times=2),
    ]


@pytest.mark.reliability
def test_a_capture_through_faults_loses_nothing(
    s3: Bucket, make_cache: Maker, sealed: Path
) -> None:
    s3.proxy.plan[:] = faults()
    report = make_cache(s3.url(), chat_rows(9))
    assert {"503", "500", "409", "reset", "lost", "twice"} <= set(s3.proxy.faults())
    assert report["network"]["retries"] >= 3
    s3.proxy.plan.clear()
    assert verify(s3.url()).problems == () and len(cachekd.open_cache(s3.url())) == 9


@pytest.mark.reliability
def test_what_is_read_through_faults_is_right(s3: Bucket, make_cache: Maker) -> None:
    make_cache(s3.url(), chat_rows(9))
    s3.proxy.plan[:] = [
        Fault(kind, "GET", "/logits/", at=100) for kind in ("flip", "cut", "short", "503", "reset")
    ]
    cache = cachekd.open_cache(s3.url())
    keys = {record.key for record in cache}
    assert len(keys) == 9 and len(s3.proxy.faults()) >= 4
    asked = len(s3.proxy.seen)
    assert {record.key for record in cachekd.open_cache(s3.url())} == keys
    assert not [
        one for one in s3.proxy.seen[asked:] if "/logits/" in one.path and ".pa" in one.path
    ]


def test_what_cannot_be_reached_is_said(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="there is no such bucket"):
        Location("s3://no-such-bucket-here/cache").names()
    s3.proxy.plan[:] = [Fault("403", "PUT", times=None)]
    with pytest.raises(StoreError, match="access is refused") as caught:
        Location(s3.url()).check_writable()
    assert SECRET not in str(caught.value) and s3.objects() == {}
