"""Push and pull over HTTP to an S3 server, with what networks do in between."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from forking import Forked, command
from runs import TRAINING
from s3_faults import Bucket, Fault
from tiny import Family

import cachekd
from cachekd.config import GcConfig
from cachekd.errors import StoreError
from cachekd.sharing.catalogue import entries
from cachekd.store import retries
from cachekd.store.gc import collect
from cachekd.store.io import Location
from cachekd.store.verify import verify

from .conftest import Maker, rows_of
from .transfers import bytes_of, fetch, send

pytestmark = pytest.mark.usefixtures("quick")
FAULTS = {
    "cut mid-upload": Fault("reset", "PUT", "logits/", times=3, at=100),
    "answer lost": Fault("lost", "PUT", "logits/|units/|manifest-", times=4),
    "500": Fault("500", None, times=6),
    "503": Fault("503", "PUT", times=4),
    "delivered twice": Fault("twice", "PUT", "units/|manifest-", times=3),
    "slow": Fault("slow", "GET", times=1, at=4000),
}
READS = {
    "slow": Fault("slow", "GET", "logits/", times=2, at=20_000),
    "cut": Fault("cut", "GET", "logits/", times=3, at=50),
    "truncated": Fault("short", "GET", "logits/|samples/", times=3, at=50),
    "a bit is another": Fault("flip", "GET", "logits/", times=2, at=40),
    "500": Fault("500", "GET", times=5),
}


def test_there_and_back(s3: Bucket, shared: Path, tmp_path: Path) -> None:
    sent = send(shared, s3.url())
    assert bytes_of(s3.url()) == bytes_of(shared)
    again = send(shared, s3.url())
    assert (again["files_moved"], again["retried"]) == (0, 0)
    fetch(s3.url(), tmp_path / "back")
    assert bytes_of(tmp_path / "back") == bytes_of(shared)
    assert sent["retried"] == 0


def test_what_arrived_is_judged_by_the_checksum_of_a_listing(s3: Bucket, shared: Path) -> None:
    send(shared, s3.url())
    read = [one.path for one in s3.proxy.seen if one.method == "GET" and ".parquet" in one.path]
    assert not read, "nothing is read back, for the catalogue neither"


def test_who_has_what_and_reuse(
    s3: Bucket, shared: Path, make_cache: Maker, tmp_path: Path
) -> None:
    team = s3.url().rpartition("/")[0]
    send(shared, f"{team}/news")
    found, problems = entries(Location(team))
    assert [entry.folder for entry in found] == ["news"] and not problems
    assert found[0].sealed_at is not None
    made = make_cache(tmp_path / "mine", rows_of(14), reuse=team)
    assert made["records_reused"] == 12 and made["documents_to_score"] == 2
    assert not verify(str(tmp_path / "mine")).problems


@pytest.mark.slow
def test_gc_on_s3(s3: Bucket, shared: Path) -> None:
    send(shared, s3.url())
    done = collect(GcConfig(cache=s3.url(), compact=True, yes=True, older_than=0.0))
    assert done["shards_after"] < done["shards_before"] <= done["files"]
    assert not verify(s3.url()).problems
    assert len(list(cachekd.open_cache(s3.url()))) == 12


@pytest.mark.reliability
@pytest.mark.parametrize("name", FAULTS)
def test_a_push_through_faults(s3: Bucket, shared: Path, name: str) -> None:
    fault = FAULTS[name]
    s3.proxy.plan.append(Fault(fault.kind, fault.method, fault.match, fault.times, fault.at))
    report = send(shared, s3.url())
    assert sum(s3.proxy.faults().values()) > 0
    s3.proxy.plan.clear()
    assert bytes_of(s3.url()) == bytes_of(shared)
    if name in ("500", "503"):  # of connections that end, the HTTP client tries some again itself
        assert report["retried"] > 0


@pytest.mark.reliability
@pytest.mark.parametrize("name", READS)
def test_a_pull_through_faults(s3: Bucket, shared: Path, tmp_path: Path, name: str) -> None:
    send(shared, s3.url())
    fault = READS[name]
    s3.proxy.plan.append(Fault(fault.kind, fault.method, fault.match, fault.times, fault.at))
    report = fetch(s3.url(), tmp_path / "back")
    assert sum(s3.proxy.faults().values()) > 0
    assert (report["retried"] > 0) == (name != "slow"), "a slow answer is waited for"
    assert bytes_of(tmp_path / "back") == bytes_of(shared)


@pytest.mark.reliability
def test_an_answer_that_never_comes_is_asked_for_again(
    s3: Bucket, shared: Path, tmp_path: Path
) -> None:
    timeouts = {"read_timeout": 1, "retries": {"total_max_attempts": 1}}
    options = {"storage_options": {"config_kwargs": timeouts}}
    s3.proxy.plan.append(Fault("stall", "PUT", "logits/", at=20))
    assert send(shared, s3.url(), **options)["retried"] > 0
    s3.proxy.plan.append(Fault("stall", "GET", "logits/.*parquet", at=20))
    assert fetch(s3.url(), tmp_path / "back", **options)["retried"] > 0
    assert s3.proxy.faults()["stall"] == 2
    assert bytes_of(tmp_path / "back") == bytes_of(shared)


@pytest.mark.reliability
def test_a_push_that_is_given_up_is_no_cache_and_goes_on(
    s3: Bucket, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "TOTAL_SECONDS", 0.05)
    s3.proxy.plan.append(Fault("503", "PUT", "units/", times=None))
    with pytest.raises(StoreError, match="503"):
        send(shared, s3.url())
    s3.proxy.plan.clear()
    with pytest.raises(StoreError):
        cachekd.open_cache(s3.url())
    more = send(shared, s3.url())
    assert more["files_skipped"] > 0
    assert bytes_of(s3.url()) == bytes_of(shared)


@pytest.mark.slow
def test_two_pushers_and_one_trainer_at_once(
    s3: Bucket, shared: Path, make_cache: Maker, family: Family, tmp_path: Path
) -> None:
    """Processes of their own; whoever looks meanwhile sees whole caches alone."""
    send(shared, s3.url())
    others = [tmp_path / "one", tmp_path / "two"]
    for number, other in enumerate(others):
        make_cache(other, rows_of(6, first=100 * (number + 1)))
    sets = [keys_of(cache) for cache in (shared, *others)]
    s3.proxy.plan[:] = [Fault("503", None, times=8), Fault("lost", "PUT", "logits/", times=2)]
    settings = [part for name, value in TRAINING.items() for part in (f"--{name}", value)]
    run = ["--cache", s3.url(), "--student", family.student, "--output-dir", tmp_path / "out"]
    processes = [
        Forked(command("train", *run, *settings), tmp_path / "trainer"),
        *(Forked(command("push", other, s3.url()), tmp_path / f"{other}-log") for other in others),
    ]
    seen = [sets[0]]
    while not all(process.ended() for process in processes):
        seen.append(keys_of(s3.url()))
    ended = [process.end() for process in processes]
    assert [one.code for one in ended] == [0, 0, 0], ended
    seen.append(keys_of(s3.url()))
    assert seen[-1] == set().union(*sets) and len(seen[-1]) == 24
    for before, after in pairwise(seen):
        assert before <= after, "nothing that was seen goes away"
    assert all(own <= one or not own & one for one in seen for own in sets), "all of a push or none"
    trained = json.loads((tmp_path / "out" / "run.json").read_text())
    assert trained["status"] == "done" and (tmp_path / "out" / "model.safetensors").exists()
    assert not verify(s3.url()).problems


def keys_of(cache: object) -> set[bytes]:
    """Keys of all records of a sealed cache, each of which is read."""
    return {record.key for record in cachekd.open_cache(str(cache))}
