"""Training from S3 through the local cache against training from a folder, in one run.

The same cache lies in a folder and on an S3 server, a process of its own on this machine. In each
round every way takes one epoch in a process of its own: from the folder; from S3 ``cold``, with an
empty local cache; from S3 ``warm``, with all files held. ``loader`` reads, decodes and collates
a made-up cache, opened before, and nothing else; ``training`` is `cachekd train` with a Llama of 4
layers and width 256: wall time of its loop, processor time of the whole run. Ratios are medians
over the rounds: 1 is as fast as the folder. Processor time is beside wall time: other work on the
machine hardly changes it. All ways must see the same batches (of training: end at the same loss).
Files are in the page cache everywhere.

``bound``: a cache several times as large as the local cache's bound, with ``--shuffle-shards 2``:
the most bytes that its folder held, as a share of the bound, polled from outside each 10 ms; and
the same with what was taken away there but is still mapped. ``many_shards``: a cache of one record
a shard: seconds to open it, to order an epoch and to read the first batch of 8, and the requests
of that (imports are left out); ``some_shards``, one with a tenth of the shards: also an epoch of
all samples shuffled at once, and to open it as if it had no seal.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import store_caches
import training_setup as setup
from common import RESULTS, in_child, median, save
from remote_turns import (
    Place,
    folder_bytes,
    open_laps,
    open_partial,
    read_epoch,
    train_epoch,
    watched,
)
from synthetic import Shape, write_cache

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from s3 import make_bucket, put_object, s3_environment, s3_server
from s3_faults import faulty

from cachekd.store.io import Location
from cachekd.store.seal import seal

BUCKET, WARM_AT_MOST = "bench", 1.10
_LARGE = 1 << 40
Turn = Callable[[Place], dict[str, Any]]


def upload(folder: Path, server: str, name: str, *, units: bool = True) -> str:
    """Every file of a cache to S3, or all but its commit records; its URL there."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    paths = [path for path in paths if units or path.parent.name != "units"]

    def put(path: Path) -> None:
        put_object(server, BUCKET, f"{name}/{path.relative_to(folder)}", path.read_bytes())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, paths))
    return f"s3://{BUCKET}/{name}"


def rounds(folder: Path, url: str, work: Path, turn: Turn, repeats: int) -> dict[str, Any]:
    """Ratios of S3, cold and warm, to the folder; who goes first changes from round to round."""
    local = Place(url=str(folder), held=work / "none", limit=_LARGE)
    there = replace(local, url=url, held=work / "held")
    ways = {"local": local, "cold": there, "warm": there}
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for number in range(repeats):
        shutil.rmtree(there.held, ignore_errors=True)
        for way in ("local", "cold", "warm") if number % 2 else ("cold", "warm", "local"):
            runs[way].append(turn(ways[way]))
            print(way, runs[way][-1], file=sys.stderr, flush=True)
    assert len({one.get("seen") for own in runs.values() for one in own}) == 1, "other batches"
    found: dict[str, Any] = {"repeats": repeats, "held_bytes": max(r["peak"] for r in runs["cold"])}
    for way in ("cold", "warm"):
        found[f"{way}_over_local"] = {
            name: _ratio(runs[way], runs["local"], field)
            for name, field in (("wall", "seconds"), ("cpu", "cpu"))
        }
    found["warm_within_target"] = {
        name: ratio["median"] <= WARM_AT_MOST for name, ratio in found["warm_over_local"].items()
    }
    shown = ("seconds", "cpu", "waits", "order", "first_batch")
    for field in (name for name in shown if name in runs["local"][0]):
        found[field] = {way: median([one[field] for one in own]) for way, own in runs.items()}
    return found


def _ratio(
    runs: list[dict[str, Any]], others: list[dict[str, Any]], field: str
) -> dict[str, float]:
    ratios = [one[field] / two[field] for one, two in zip(runs, others, strict=True)]
    return {"median": median(ratios), "least": median([min(ratios)]), "most": median([max(ratios)])}


def loader(folder: Path, url: str, work: Path, repeats: int) -> dict[str, Any]:
    """Reading alone, in the process of the training and in two workers."""

    def turn(workers: int) -> Turn:
        return lambda place: watched(place.held, read_epoch, replace(place, workers=workers))

    return {
        f"{workers} workers": rounds(folder, url, work, turn(workers), repeats)
        for workers in (0, 2)
    }


def bound(folder: Path, url: str, work: Path, shards: int) -> dict[str, Any]:
    """Peaks of a local cache that holds ``shards`` shards of a larger cache."""
    sizes = [path.stat().st_size for path in (folder / "logits").glob("*.parquet")]
    limit = shards * max(sizes)
    found: dict[str, Any] = {"bound_bytes": limit, "cache_over_bound": round(sum(sizes) / limit, 2)}
    for workers in (0, 2):
        shutil.rmtree(work / "held", ignore_errors=True)
        place = Place(url=url, held=work / "held", limit=limit, window=2, workers=workers)
        run = watched(place.held, read_epoch, place)
        found[f"{workers} workers"] = {
            "peak_over_bound": round(run["peak"] / limit, 4),
            "peak_with_mapped_over_bound": round(run["peak_mapped"] / limit, 4),
            "at_the_end_over_bound": round(folder_bytes(place.held) / limit, 4),
        }
        if not workers:  # what workers fetch is counted in them
            found["0 workers"]["files_fetched"] = run["files_fetched"]
            found["0 workers"]["shards"] = len(sizes)
    return found


def training(work: Path, server: str, sizes: setup.Sizes, repeats: int) -> dict[str, Any]:
    """`cachekd train`, one epoch a turn."""
    in_child(_write_training, work, sizes)
    folder = work / "k64"
    url, student, numbers = upload(folder, server, "training"), work / "student", iter(range(10**6))

    def turn(place: Place) -> dict[str, Any]:
        out = work / f"out-{next(numbers)}"
        run = watched(place.held, train_epoch, place, student, out)
        shutil.rmtree(out)
        return run

    found = rounds(folder, url, work, turn, repeats)
    largest = max(path.stat().st_size for path in (folder / "logits").glob("*.parquet"))
    small = Place(url=url, held=work / "held", limit=4 * largest, window=2)
    shutil.rmtree(small.held)
    run = turn(small)
    found["bound"] = {
        "peak_over_bound": round(run["peak"] / small.limit, 4),
        "cache_over_bound": round(found["held_bytes"] / small.limit, 2),
    }
    return found | {"steps": sizes.steps, "tokens_a_step": sizes.tokens, "vocabulary": sizes.vocab}


def _write_training(work: Path, sizes: setup.Sizes) -> None:
    setup.write_caches(work, sizes, 1, ("k64",), unit_tokens=4 * sizes.tokens)
    setup.student(sizes.vocab).save_pretrained(work / "student")
    setup.tokenizer(sizes.vocab).save_pretrained(work / "student")


def many_shards(work: Path, server: str, shards: int, repeats: int, small: bool) -> dict[str, Any]:
    """Opening of a cache of one record a shard; of a small one also an epoch, and without seal."""
    folder = work / f"many-{shards}"
    in_child(_write_many, folder, shards)
    url = upload(folder, server, folder.name, units=small)
    turns = partial(rounds, folder, url, work, repeats=repeats)
    found = {"shards": shards, "open": turns(turn=_turn(open_laps))}
    found["requests"] = _requests(url, work, server)
    if small:
        found["epoch"] = turns(turn=_turn(read_epoch))
        found["open_partial_seconds"] = {
            name: median([_turn(open_partial)(place)["seconds"] for _ in range(repeats)])
            for name, place in (("local", _all(str(folder), work)), ("s3", _all(url, work)))
        }
    shutil.rmtree(folder)
    return found


def _all(url: str, work: Path) -> Place:
    return Place(url=url, held=work / "held", limit=_LARGE, window=0)


def _turn(act: Turn) -> Turn:
    return lambda place: watched(place.held, act, replace(place, window=0))


def _write_many(folder: Path, shards: int) -> None:
    store_caches.write_cache(folder, shards, 1)
    seal(Location(str(folder)))


def _requests(url: str, work: Path, server: str) -> int:
    """Requests from `open_cache` to the first batch, with an empty local cache."""
    shutil.rmtree(work / "held", ignore_errors=True)
    with faulty(server) as proxy:
        os.environ.update(s3_environment(proxy.url))
        watched(
            work / "held", open_laps, Place(url=url, held=work / "held", limit=_LARGE, window=0)
        )
        os.environ.update(s3_environment(server))
        return len(proxy.seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--documents", type=int, default=256, help="of a shard")
    parser.add_argument("--tokens", type=int, default=256, help="of a document")
    parser.add_argument("--steps", type=int, default=40, help="of training")
    parser.add_argument("--many", type=int, default=10_000, help="shards of one record")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="series; the others stay as they were saved")
    parser.add_argument("--quick", action="store_true", help="small, once, saves nothing")
    args = parser.parse_args()
    shape = Shape(shards=args.shards, documents=args.documents, tokens=args.tokens)
    sizes = setup.Sizes(vocab=8192, tokens=1024, steps=args.steps)
    if args.quick:
        shape = Shape(shards=8, documents=8, tokens=32, vocab=512, k=8)
        sizes, args.many, args.repeats = setup.Sizes(vocab=512, tokens=1024, steps=2), 100, 1
    with tempfile.TemporaryDirectory() as name, s3_server() as server:
        work = Path(name)
        os.environ.update(s3_environment(server))
        make_bucket(server, BUCKET)
        in_child(write_cache, work / "cache", shape)
        url, seldom = upload(work / "cache", server, "cache"), max(1, args.repeats - 2)
        series: dict[str, Callable[[], dict[str, Any]]] = {
            "loader": lambda: loader(work / "cache", url, work, args.repeats),
            "bound": lambda: bound(work / "cache", url, work, 4),
            "training": lambda: training(work, server, sizes, seldom),
            "some_shards": lambda: many_shards(work, server, args.many // 10, seldom, small=True),
            "many_shards": lambda: many_shards(work, server, args.many, seldom, small=False),
        }
        result = saved() if args.only else {}
        for name in args.only or series:
            result[name] = series[name]()
            # After each series: what is measured stays if the next is stopped.
            save("remote", result, keep=not args.quick)


def saved() -> dict[str, Any]:
    """What was saved before, without where and when."""
    found: dict[str, Any] = json.loads((RESULTS / "remote.json").read_text())
    return {name: one for name, one in found.items() if name not in ("command", "date", "machine")}


if __name__ == "__main__":
    main()
