"""Processes that write one cache on S3 at once, or are killed: it is that of one calm run."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from forking import Forked, command
from hosting import until
from s3_faults import Bucket, Fault
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd.errors import CacheNotFound, UnsealedCache
from cachekd.store import retries
from cachekd.store.io import Location
from cachekd.store.verify import verify

SPEC = {"logits-top-k": 8, "threads": 1, "unit-tokens": 80, "batch-tokens": 80, "writers": 0}
ROWS = 6


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Waits are short, also in processes that are forked; the local cache is the test's own."""
    monkeypatch.setattr(retries, "FIRST_SECONDS", 0.001)
    monkeypatch.setattr(retries, "MOST_SECONDS", 0.01)
    monkeypatch.setenv("CACHEKD_LOCAL_CACHE", str(tmp_path / "local"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "data.jsonl", chat_rows(ROWS))


@pytest.fixture(scope="module")
def calm(family: Family, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same capture by one process into a folder."""
    folder = tmp_path_factory.mktemp("calm")
    assert writer(family, rows, folder, str(folder / "cache")).end().code == 0
    return folder / "cache"


def writer(family: Family, rows: Path, folder: Path, url: str, **further: Any) -> Forked:
    """A process that captures into a location; what it prints goes to a folder."""
    named = {"teacher": family.teacher, "data": rows, "cache": url, "backend": "dummy"}
    flags = {**named, **SPEC, **further}
    run = command("precompute", *(part for k, v in flags.items() for part in (f"--{k}", v)))
    return Forked(run, folder / "printed")


def is_calm(s3: Bucket, calm: Path) -> None:
    """The cache there is whole, and holds the files of the calm one, no more and no less."""
    assert cachekd.open_cache(s3.url()).root == cachekd.open_cache(str(calm)).root
    assert verify(s3.url()).problems == ()
    there, here = Location(s3.url()), Location(str(calm))
    for folder in ("logits", "samples", "index"):
        assert there.names(folder) == here.names(folder), folder
    numbers = [{name.rpartition("-")[2] for name in one.names("units")} for one in (there, here)]
    assert numbers[0] == numbers[1] and len(there.names("units")) == len(here.names("units"))


@pytest.mark.reliability
@pytest.mark.parametrize("ranks", [True, False])
def test_two_writers_at_once(
    s3: Bucket, family: Family, rows: Path, calm: Path, tmp_path: Path, ranks: bool
) -> None:
    """Also through faults; without ranks both begin with the same units."""
    s3.proxy.plan[:] = [
        Fault("503", "PUT", times=3),
        Fault("lost", "PUT", "/units/", times=2),
        Fault("twice", "PUT", "/logits/|/units/", times=2),
        Fault("reset", "PUT", "/samples/", at=20),
    ]
    places = [{"rank": rank, "world-size": 2} if ranks else {} for rank in range(2)]
    writers = [
        writer(family, rows, tmp_path / str(number), s3.url(), **place)
        for number, place in enumerate(places)
    ]
    ended = [one.end() for one in writers]
    # With ranks the last one seals; the other one may have left it to that.
    assert {one.code for one in ended} <= {0, 3} and any(one.code == 0 for one in ended), ended
    assert len(s3.proxy.faults()) == 4
    s3.proxy.plan.clear()
    is_calm(s3, calm)


@pytest.mark.reliability
@pytest.mark.parametrize("reached", ["/cache.json", "/units/", "/manifest-"])
def test_a_writer_that_is_killed_and_one_that_goes_on(
    s3: Bucket, family: Family, rows: Path, calm: Path, tmp_path: Path, reached: str
) -> None:
    """Killed by the system while it sends the second of such files, or the only one."""
    s3.proxy.plan[:] = [Fault("stall", "PUT", reached, times=None, at=60)]
    if reached == "/units/":
        s3.proxy.plan.insert(0, Fault("twice", "PUT", reached))  # the first one comes through
    first = writer(family, rows, tmp_path / "first", s3.url())
    until(lambda: s3.proxy.faults()["stall"] or first.ended())
    first.send(signal.SIGKILL)
    assert first.end().code == -signal.SIGKILL and s3.proxy.faults()["stall"]
    s3.proxy.plan.clear()
    with pytest.raises((CacheNotFound, UnsealedCache)):
        cachekd.open_cache(s3.url())
    committed = {key: size for key, size in s3.objects().items() if "/units/" in key}
    if committed:
        partial = cachekd.open_cache(s3.url(), partial=True)
        assert 0 < len([*partial]) <= ROWS
    second = writer(family, rows, tmp_path / "second", s3.url()).end()
    assert second.code == 0, second
    assert committed.items() <= s3.objects().items(), "what was committed is not written again"
    is_calm(s3, calm)
