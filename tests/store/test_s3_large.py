"""Large files on S3: put in parts, seen by nobody before all are there; read in ranges."""

from __future__ import annotations

import asyncio
import hashlib
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from s3 import ask
from s3_faults import Bucket, Fault

from cachekd.errors import StoreError
from cachekd.store import remote, retries
from cachekd.store.io import Location

PART = 5 << 20  # the least that S3 takes as a part
WHOLE = bytes(range(256)) * (2 * PART // 256) + b"and a little more"
NAME = f"logits/{hashlib.sha256(WHOLE).hexdigest()}.parquet"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Waits are short; what takes two parts and a bit is large; the local cache is the test's."""
    from s3fs import S3FileSystem

    monkeypatch.setattr(retries, "FIRST_SECONDS", 0.001)
    monkeypatch.setattr(retries, "MOST_SECONDS", 0.01)
    monkeypatch.setenv("CACHEKD_LOCAL_CACHE", str(tmp_path / "local"))
    in_parts = partialmethod(S3FileSystem._pipe_file, chunksize=PART)
    monkeypatch.setattr(S3FileSystem, "_pipe_file", in_parts)


@pytest.fixture
def place(s3: Bucket) -> Location:
    return Location(s3.url())


def begun(s3: Bucket) -> int:
    """Uploads that are neither ended nor given up: they would be paid for."""
    return ask(s3.server, "GET", f"/{s3.name}?uploads").count(b"<UploadId>")


def parts(s3: Bucket) -> int:
    return sum(one.method == "PUT" and "partNumber" in one.path for one in s3.proxy.seen)


def test_it_is_put_in_parts_and_never_over_another(s3: Bucket, place: Location) -> None:
    assert place.create(NAME, WHOLE) and parts(s3) == 3
    assert s3.objects() == {f"cache/{NAME}": len(WHOLE)}
    assert not place.create(NAME, WHOLE[:-1] + b"!"), "the second put finds it taken"
    assert place.read(NAME) == WHOLE and begun(s3) == 0


FAULTS = {
    "a part is cut off": Fault("reset", "PUT", "partNumber=2", times=2, at=1 << 20),
    "the answer to a part is lost": Fault("lost", "PUT", "partNumber=3", times=2),
    "a part is throttled": Fault("503", "PUT", "partNumber=1", times=2),
    "the beginning is refused": Fault("500", "POST", "uploads", times=2),
    "the end is refused": Fault("500", "POST", "uploadId", times=2),
    "the answer to the end is lost": Fault("lost", "POST", "uploadId", times=1),
}


@pytest.mark.reliability
@pytest.mark.parametrize("name", FAULTS)
def test_what_happens_in_the_middle_of_it(s3: Bucket, place: Location, name: str) -> None:
    fault = FAULTS[name]
    s3.proxy.plan[:] = [Fault(fault.kind, fault.method, fault.match, fault.times, fault.at)]
    assert place.create(NAME, WHOLE)
    assert sum(s3.proxy.faults().values()) == fault.times
    assert place.read(NAME) == WHOLE and s3.objects() == {f"cache/{NAME}": len(WHOLE)}
    if fault.kind in ("500", "503"):  # where connections break, giving up may fail as well
        assert begun(s3) == 0, "what was begun and not ended is given up"


def test_a_put_that_is_given_up_leaves_nothing(
    s3: Bucket, place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "TOTAL_SECONDS", 0.05)
    s3.proxy.plan[:] = [Fault("503", "PUT", "partNumber=3", times=None)]
    with pytest.raises(StoreError, match="503"):
        place.create(NAME, WHOLE)
    assert s3.objects() == {} and begun(s3) == 0


def test_of_two_large_puts_at_once_one_wins(
    s3: Bucket, place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one begins and ends when all parts of the first are there."""
    from s3fs import S3FileSystem

    call, made = S3FileSystem._call_s3, list[bool]()

    async def interrupted(self: S3FileSystem, method: str, *args: Any, **named: Any) -> Any:
        if method == "complete_multipart_upload" and not made:
            made.append(True)
            made[0] = await asyncio.to_thread(Location(s3.url()).create, NAME, WHOLE[:-1] + b"!")
        return await call(self, method, *args, **named)

    monkeypatch.setattr(S3FileSystem, "_call_s3", interrupted)
    assert not place.create(NAME, WHOLE) and made == [True]
    assert place.read(NAME) == WHOLE[:-1] + b"!" and begun(s3) == 0 and parts(s3) == 6


@pytest.mark.parametrize("kind", ["plain", "cut", "short", "flip"])
def test_it_is_read_in_ranges(
    s3: Bucket, place: Location, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Also from a server that sends all where a range is asked for, or less, or other bytes."""
    monkeypatch.setattr(remote, "CHUNK_BYTES", 1 << 20)
    s3.put(f"cache/{NAME}", WHOLE)
    times = 1 if kind == "plain" else 2  # then all of it is there
    s3.proxy.plan[:] = [Fault(kind, "GET", "logits/", times=times, at=1000)]
    data = place.checked(NAME, hashlib.sha256(WHOLE).hexdigest(), len(WHOLE))
    assert data.to_pybytes() == WHOLE and s3.proxy.faults() == {kind: times}
    ranges = [one.headers.get("range", "") for one in s3.proxy.seen if "/logits/" in one.path]
    assert len({*ranges}) == (1 if kind == "plain" else 11), "each a mebibyte"
