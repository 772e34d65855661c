"""Push and pull on S3 that are killed, or beside others: two pushers, a pull while a push works."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from s3_faults import Bucket, Fault

import cachekd
from cachekd.errors import StoreError
from cachekd.sharing import transfer
from cachekd.store.io import Location
from cachekd.store.verify import verify

from .conftest import Maker, rows_of
from .transfers import bytes_of, fetch, send

pytestmark = pytest.mark.usefixtures("quick")
STALLED_SECONDS = 30


def shards_of(cache: object) -> list[str]:
    """Names of the shards of logits."""
    names = Location(str(cache)).names("logits")
    return [f"logits/{name}" for name in names if name.endswith(".parquet")]


def asked(s3: Bucket, method: str, since: int = 0) -> list[str]:
    """Shards that requests since then were about, one a request."""
    seen = [one.path for one in s3.proxy.seen[since:] if one.method == method]
    about = [path.partition("/cache/")[2] for path in seen if path.endswith(".parquet")]
    return [name for name in about if name.startswith("logits/")]


def killed(s3: Bucket, *args: object) -> None:
    """Run a command until a request stalls, then kill it as the system does."""
    code = "from cachekd_cli.main import main; main()"
    command = [sys.executable, "-c", code, *map(str, args), "--jobs", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as worker:
        until = time.monotonic() + 60
        while not s3.proxy.faults()["stall"] and time.monotonic() < until:
            time.sleep(0.02)
        worker.kill()
    assert s3.proxy.faults()["stall"] > 0
    s3.proxy.plan.clear()


def at_once(*acts: Callable[[], Any]) -> list[Any]:
    """What these give, each in a thread; the first error is raised."""
    found: list[Any] = [None] * len(acts)

    def run(number: int) -> None:
        try:
            found[number] = acts[number]()
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found


@contextmanager
def meeting() -> Iterator[None]:
    """Within: two pushes have both brought all that they bring before either writes its seal."""
    real, barrier = transfer._seal, threading.Barrier(2, timeout=60)

    def met(*args: Any) -> Any:
        barrier.wait()
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "_seal", met)
        yield


@pytest.mark.reliability
@pytest.mark.parametrize("reached", ["the last shard", "cache.json", "/units/"])
def test_a_push_that_was_killed_sends_what_is_missing_alone(
    s3: Bucket, shared: Path, reached: str
) -> None:
    """Killed when it has begun to send such a file."""
    every = shards_of(shared)
    at = every[-1] if reached == "the last shard" else reached
    s3.proxy.plan.append(Fault("stall", "PUT", at, times=None, at=STALLED_SECONDS))
    killed(s3, "push", shared, s3.url())
    arrived = {name for name in every if f"cache/{name}" in s3.objects()}
    assert arrived == set(every) - {at}
    with pytest.raises(StoreError):
        cachekd.open_cache(s3.url())
    before = len(s3.proxy.seen)
    again = send(shared, s3.url())
    assert asked(s3, "PUT", before) == [name for name in every if name not in arrived]
    assert again["files_skipped"] >= len(arrived)
    assert bytes_of(s3.url()) == bytes_of(shared)
    assert not verify(s3.url()).problems


@pytest.mark.reliability
def test_a_pull_that_was_killed_fetches_what_is_missing_alone(
    s3: Bucket, shared: Path, tmp_path: Path
) -> None:
    send(shared, s3.url())
    every, back = shards_of(shared), tmp_path / "back"
    s3.proxy.plan.append(Fault("stall", "GET", every[-1], times=None, at=STALLED_SECONDS))
    killed(s3, "pull", s3.url(), back)
    arrived = {name for name in every if (back / name).exists()}
    assert 0 < len(arrived) < len(every)
    with pytest.raises(StoreError):
        cachekd.open_cache(str(back))
    before = len(s3.proxy.seen)
    again = fetch(s3.url(), back)
    assert sorted(asked(s3, "GET", before)) == sorted(set(every) - arrived)
    assert again["files_skipped"] == len(arrived)
    assert bytes_of(back) == bytes_of(shared)
    assert not list(back.rglob(".tmp-*")), "what the killed one left half-written is swept"


@pytest.mark.slow
def test_two_pushers_of_one_cache(s3: Bucket, shared: Path) -> None:
    with meeting():
        done = at_once(*(lambda: send(shared, s3.url()) for _ in range(2)))
    assert {one["root"] for one in done} == {cachekd.open_cache(str(shared)).root}
    assert [one["generation"] for one in done] == [1, 1]
    assert bytes_of(s3.url()) == bytes_of(shared)


@pytest.mark.slow
def test_two_pushers_of_two_parts_make_the_whole(s3: Bucket, shared: Path, tmp_path: Path) -> None:
    parts = [tmp_path / "law", tmp_path / "code"]
    for part in parts:
        fetch(shared, part, domain=(part.name,))
        assert set(shards_of(part)) < set(shards_of(shared))
    with meeting():
        done = at_once(*(lambda part=part: send(part, s3.url()) for part in parts))
    whole = cachekd.open_cache(str(shared)).root
    assert cachekd.open_cache(s3.url()).root == whole
    newest = max(done, key=lambda one: int(one["generation"]))
    assert (newest["generation"], newest["root"]) == (2, whole)
    assert not verify(s3.url()).problems


@pytest.mark.slow
def test_a_pull_while_a_push_works_is_refused_or_whole(
    s3: Bucket, shared: Path, make_cache: Maker, tmp_path: Path
) -> None:
    """After the first file of each kind of a push, then of a push of more, somebody pulls."""
    grown = tmp_path / "grown"
    fetch(shared, grown)
    make_cache(grown, rows_of(14), domain_column="domain", sort_window=1)
    old: str | None = None
    for cache in (shared, grown):
        new = cachekd.open_cache(str(cache)).root
        with watching(s3.url(), tmp_path / cache.name) as seen:
            send(cache, s3.url(), jobs=1)
        assert {"logits", "samples", "units", "index"} < seen.keys()
        kinds = list(seen)
        sealed = next(n for n, kind in enumerate(kinds) if kind.startswith("manifest-"))
        assert [seen[kind] for kind in kinds] == [old] * sealed + [new] * (len(kinds) - sealed)
        old = new


@contextmanager
def watching(url: str, folder: Path) -> Iterator[dict[str, str | None]]:
    """Within, a pull follows the first file of each kind that is written; what it gave by kind."""
    seen: dict[str, str | None] = {}

    def watched(write: str) -> Callable[..., Any]:
        real = getattr(Location, write)

        def act(self: Location, name: str, *args: Any, **further: Any) -> Any:
            made = real(self, name, *args, **further)
            kind = name.partition("/")[0]
            if self.url == url and kind not in seen and not name.startswith(".probe"):
                seen[kind] = None
                seen[kind] = pulled(url, folder / f"after-{kind}")
            return made

        return act

    with pytest.MonkeyPatch.context() as patch:
        for write in ("create", "take", "replace"):
            patch.setattr(Location, write, watched(write))
        yield seen


def pulled(url: str, into: Path) -> str | None:
    """The root digest of a pull that is whole; None of one that was refused and left nothing."""
    try:
        report = fetch(url, into)
    except StoreError:
        assert not into.exists()
        return None
    assert not verify(str(into)).problems
    assert cachekd.open_cache(str(into)).root == report["root"]
    return str(report["root"])
