"""Compaction and union, killed at changes of the disk: ``python tests/share_kills.py gc --step 5``.

Prints one JSON object with counts; ends with an AssertionError at the first case that is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from crashes import Workload, contents, forked, killed_at, make_workload, report, trip
from tiny import chat_rows, write_rows

import cachekd
from cachekd.config import GcConfig
from cachekd.errors import CacheNotFound, UnsealedCache
from cachekd.store.gc import collect
from cachekd.store.merge import merge
from cachekd.store.verify import verify

Act = Callable[[Path], object]


def records(cache: Path) -> dict[str, str]:
    """Digest of what a reader sees of each sample, by its id."""
    opened = cachekd.open_cache(str(cache))
    found = {}
    for name, record in zip(opened.sample_ids, opened, strict=True):
        kept = (
            record.logits.ids,
            record.logits.logprobs,
            record.logits.tail,
            record.logits.offsets,
        )
        data = b"".join(array.tobytes() for array in (record.input_ids, record.roles, *kept))
        found[str(name)] = hashlib.sha256(data).hexdigest()
    return found


def compacted(cache: Path) -> None:
    collect(GcConfig(cache=str(cache), compact=True, yes=True, older_than=0.0))


def killed(act: Act, folder: Path, number: int) -> int:
    """Run this until the change of this number; how it ended."""

    def run() -> None:
        trip(killed_at(number))
        act(folder)

    return forked(run).code


def changes(act: Act, folder: Path) -> int:
    """Changes of the disk of an undisturbed run."""

    def run() -> None:
        trip(lambda *_: None)
        act(folder)

    calm = forked(run)
    assert calm.code == 0, calm.error
    return len(calm.changes)


def aged(cache: Path, folder: Path) -> Path:
    """A copy of a cache that no writer has touched for two days."""
    shutil.copytree(cache, folder)
    then = time.time() - 48 * 3600
    for path in folder.rglob("*"):
        os.utime(path, (then, then))
    return folder


def kills_of_gc(root: Path, first: Path, step: int) -> dict[str, int]:
    """Wherever it is killed the records are the same, and the same command ends the work."""
    truth, done = records(first), 0
    last = changes(compacted, aged(first, root / "calm"))
    shards = len(list((root / "calm" / "logits").glob("*.parquet")))
    assert records(root / "calm") == truth and shards < len(list((first / "logits").iterdir())) - 1
    for number in range(1, last + 1, step):
        cache = aged(first, root / f"killed-{number}")
        assert killed(compacted, cache, number) == -signal.SIGKILL
        assert records(cache) == truth, number
        assert not verify(str(cache)).problems, number
        compacted(cache)
        assert records(cache) == truth, number
        assert not verify(str(cache)).problems, number
        assert len(list((cache / "logits").glob("*.parquet"))) == shards, number
        assert not list(cache.rglob(".tmp-*")), number
        shutil.rmtree(cache)
        done += 1
    return {"changes": last, "done": done}


def kills_of_merge(root: Path, first: Path, second: Path, step: int) -> dict[str, int]:
    """A union is none before its seal; the same command ends it; the sources stay as they are."""

    def united(into: Path) -> None:
        merge([str(first), str(second)], str(into))

    before = [contents(cache) for cache in (first, second)]
    last, done = changes(united, root / "calm"), 0
    truth = contents(root / "calm")
    sources, union = (records(first), records(second)), records(root / "calm")
    assert union.keys() == sources[0].keys() | sources[1].keys()
    assert all(found in [one.get(name) for one in sources] for name, found in union.items())
    for number in range(1, last + 1, step):
        into = root / f"killed-{number}"
        assert killed(united, into, number) == -signal.SIGKILL
        try:
            found = records(into)
        except (CacheNotFound, UnsealedCache):
            found = None
        assert found in (None, union), number
        united(into)
        assert contents(into) == truth, number
        assert not verify(str(into)).problems, number
        shutil.rmtree(into)
        done += 1
    assert [contents(cache) for cache in (first, second)] == before
    return {"changes": last, "done": done}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("gc", "merge"))
    parser.add_argument("--step", type=int, default=1)
    args = parser.parse_args()
    with TemporaryDirectory() as name:
        root = Path(name)
        workload = make_workload(root, 10, 100)
        workload.run(root / "first")
        if args.what == "gc":
            report(**kills_of_gc(root, root / "first", args.step))
            return
        data = write_rows(root / "more.jsonl", chat_rows(8, 6))
        Workload(workload.teacher, data, 100).run(root / "second")
        report(**kills_of_merge(root, root / "first", root / "second", args.step))


if __name__ == "__main__":
    main()
