"""Push and pull against a plain copy of the same files, in one run; what a second push looks at.

A made-up cache goes to a folder and to an S3 server on this machine, each into an empty place,
turn by turn: by `push`, and by the filesystem's own recursive ``put`` with as many transfers at
once, which checks nothing and, in a folder, waits for no disk; there the same copy with each file
synced to the disk, as `push` and `pull` do it, stands beside it. The same for `pull` and ``get``.
Figures are medians of the repeats, as ratios: 1 is as fast as the plain copy. Memory is what a
process grows by at its peak (``VmHWM``, which counts mapped pages of files too) while it moves one
large shard, after it has moved a small cache. The rest is counted: files that a second push of an
unchanged cache looks at and moves, requests of it, and what parts take of the whole.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
from common import forget_peak, in_child, median, resident, save
from synthetic import Shape, write_cache

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from s3 import make_bucket, s3_environment, s3_server
from s3_faults import faulty

from cachekd.config import PullConfig, PushConfig
from cachekd.sharing.content import sealed_content
from cachekd.sharing.pull import pull
from cachekd.sharing.push import push
from cachekd.store.io import Location

JOBS = 8
SMALL = Shape(shards=4, documents=8, tokens=32, vocab=512, k=8)


def seconds(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def plain_put(cache: Path, url: str) -> None:
    """The files of a cache by the filesystem alone."""
    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.put(f"{cache}/", f"{path}/", recursive=True, batch_size=JOBS)


def plain_get(url: str, folder: str) -> None:
    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.get(f"{path}/", f"{folder}/", recursive=True, batch_size=JOBS)


def synced(copy: Callable[[], object], folder: str) -> None:
    """A copy, and then every file of it on the disk."""
    copy()
    for path in Path(folder).rglob("*"):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.close(file)


def timed(cache: Path, base: str, work: Path, repeats: int) -> dict[str, Any]:
    """Ratios of push and pull to the plain copy, at one kind of place."""
    found: dict[str, list[float]] = {}
    local = "://" not in base
    for number in range(repeats):
        pushed, put = f"{base}/pushed-{number}/cache", f"{base}/put-{number}/cache"
        here = {name: str(work / f"{name}{number}") for name in ("pull", "get", "synced")}
        turns: list[tuple[str, Callable[[], object]]] = [
            ("push", lambda url=pushed: push(config(PushConfig, cache, url))),
            ("put", lambda url=put: plain_put(cache, url)),
            ("pull", lambda url=pushed, to=here["pull"]: pull(config(PullConfig, to, url))),
            ("get", lambda url=put, to=here["get"]: plain_get(url, to)),
            (
                "get_synced",
                lambda url=put, to=here["synced"]: synced(lambda: plain_get(url, to), to),
            ),
        ]
        if local:
            sync = f"{base}/synced-{number}/cache"
            turns.append(
                ("put_synced", lambda url=sync: synced(lambda: plain_put(cache, url), url))
            )
        for name, act in turns:
            found.setdefault(name, []).append(seconds(act))
        for folder in here.values():
            shutil.rmtree(folder)
    medians = {name: median(values) for name, values in found.items()}
    pairs = {
        "push_over_put": ("push", "put"),
        "pull_over_get": ("pull", "get"),
        "pull_over_synced": ("pull", "get_synced"),
    }
    if local:
        pairs["push_over_synced"] = ("push", "put_synced")
    ratios = {
        name: median([a / b for a, b in zip(found[one], found[other], strict=True)])
        for name, (one, other) in pairs.items()
    }
    return {**ratios, "seconds": medians}


def config(kind: Any, cache: Path | str, url: str, **further: Any) -> Any:
    return kind(cache=str(cache), location=url, jobs=JOBS, **further)


def growth(kind: str, small: Path, cache: Path, base: str) -> int:
    """Bytes that this process grows by while it pushes a cache, or pulls one that was pushed."""
    act, settings = (push, PushConfig) if kind == "push" else (pull, PullConfig)
    ends = [(small, f"{base}/small/cache"), (cache, f"{base}/large/cache")]
    for number, (folder, url) in enumerate(ends):
        here = folder if kind == "push" else folder.with_name(f"{folder.name}-{len(base)}")
        before = resident("VmRSS")
        if number:
            forget_peak()
        act(config(settings, here, url))
    return resident("VmHWM") - before


def memory(shape: Shape, work: Path, places: dict[str, str]) -> dict[str, Any]:
    """Growth of processes that move a large shard, in MB."""
    small, cache = work / "small", work / "large"
    write_cache(small, SMALL)
    size = write_cache(cache, shape)
    found = {
        f"{kind}_{name}": round(in_child(growth, kind, small, cache, base) / 1e6, 1)
        for name, base in places.items()
        for kind in ("push", "pull")
    }
    return {"shard_mb": round(size / 1e6, 1), "growth_mb": found}


def second_push(cache: Path, server: str, url: str) -> dict[str, Any]:
    """What a push of what is there already looks at, moves and asks."""
    with faulty(server) as proxy:
        os.environ.update(s3_environment(proxy.url))
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        report = push(config(PushConfig, cache, url))
        requests = len(proxy.seen)
    names = ("files_moved", "files_skipped", "bytes_moved", "retried")
    return {**{name: report[name] for name in names}, "requests": requests}


def parts(cache: Path, url: str, work: Path) -> dict[str, Any]:
    """Bytes of parts of a cache, as shares of a pull of the whole."""
    whole = pull(config(PullConfig, work / "whole", url))["bytes_moved"]
    tenth = pull(config(PullConfig, work / "tenth", url, fraction=0.1))
    keys = sealed_content(Location(str(cache))).index().keys[:1]
    one = pull(config(PullConfig, work / "one", url), keys=keys)
    return {
        "whole_bytes": whole,
        "a_tenth_of_the_shards": round(tenth["bytes_moved"] / whole, 4),
        "shards_of_one_record": round(one["bytes_moved"] / whole, 4),
        "shards": [one["shards"], tenth["shards"], tenth["shards_of"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--documents", type=int, default=256, help="of a shard")
    parser.add_argument("--tokens", type=int, default=256, help="of a document")
    parser.add_argument("--large", type=int, default=6800, help="documents of the large shard")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small, once, saves nothing")
    args = parser.parse_args()
    shape = Shape(shards=args.shards, documents=args.documents, tokens=args.tokens)
    if args.quick:
        shape, args.repeats = SMALL, 1
        args.large = 16
    with tempfile.TemporaryDirectory() as folder, s3_server() as server:
        work = Path(folder)
        os.environ["CACHEKD_LOCAL_CACHE"] = str(work / "local-cache")
        cache = work / "cache"
        write_cache(cache, shape)
        os.environ.update(s3_environment(server))
        make_bucket(server, "bench")
        url = "s3://bench/team"
        large = Shape(shards=1, documents=args.large, tokens=256)
        places = {"folder": str(work / "memory"), "s3": "s3://bench/memory"}
        result = {
            "memory": memory(large, work, places),
            "bytes": sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()),
            "files": sum(path.is_file() for path in cache.rglob("*")),
            "jobs": JOBS,
            "folder": timed(cache, str(work / "shared"), work, args.repeats),
            "s3": timed(cache, url, work, args.repeats),
            "second_push": second_push(cache, server, f"{url}/pushed-0/cache"),
            "parts": parts(cache, str(work / "shared" / "pushed-0" / "cache"), work),
        }
    save("share", result, keep=not args.quick)


if __name__ == "__main__":
    main()
