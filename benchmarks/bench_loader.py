"""What reading a cache costs a training: tokens a second of one core, and the first batch.

Throughput: a made-up cache (`synthetic.py`, V = 32 768) is read in shuffled batches of 8 documents
and collated, in one process with one thread, shards open and in the page cache. Tokens are input
tokens, targets those that are trained (three quarters).

First batch: in a fresh process, the cache's files out of the page cache, from `open_cache` over the
dataset and the order of the epoch to the first batch of 8; imports are left out. The default order
draws 8 documents from anywhere, so it opens (and checks in whole) up to 8 shards; windows of shards
draw from a few. Memory is the peak of the process (``VmHWM``), which counts mapped pages of
shards, and its anonymous pages at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from common import median, save
from synthetic import Shape, write_cache

import cachekd
from cachekd.training.order import Order

BATCH, DOCUMENTS, TOKENS = 8, 256, 1024
SHAPES = {
    "k = 64, float16": {"k": 64},
    "top-p 0.9 of at most 64, float16": {"k": 64, "top_p": 0.9},
}


def throughput(folder: Path, repeats: int) -> dict[str, Any]:
    """Reader and collator alone, for each shape."""
    torch.set_num_threads(1)
    rows = {}
    for number, (name, cut) in enumerate(SHAPES.items()):
        shape = Shape(shards=2, documents=DOCUMENTS, tokens=TOKENS, **cut)
        cache_bytes = write_cache(folder / f"shape-{number}", shape)
        cache = cachekd.open_cache(str(folder / f"shape-{number}"))
        dataset = cachekd.CacheDataset(cache)
        order, collate = list(cachekd.EpochSampler(dataset, seed=0)), cachekd.Collator()
        collate(dataset.__getitems__(order[:BATCH]))
        read, both = [], []
        for _ in range(repeats):
            started = time.perf_counter()
            for at in range(0, len(order), BATCH):
                dataset.__getitems__(order[at : at + BATCH])
            read.append(time.perf_counter() - started)
            started = time.perf_counter()
            for at in range(0, len(order), BATCH):
                collate(dataset.__getitems__(order[at : at + BATCH]))
            both.append(time.perf_counter() - started)
        entries, tokens = cache.totals["entries"], cache.totals["tokens"]
        rows[name] = {
            "entries_per_token": round(entries / cache.totals["targets"], 1),
            "bytes_per_token": round(cache_bytes / tokens, 1),
            "tokens_per_second_read": round(tokens / median(read)),
            "tokens_per_second_read_and_collate": round(tokens / median(both)),
            "million_entries_per_second": round(entries / median(both) / 1e6, 1),
        }
    return rows


def first_batch(url: str, shuffle_shards: int) -> dict[str, Any]:
    """Seconds to the first batch and to the second, and memory, in this process."""
    laps = {}
    started = last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        laps[name] = round(time.perf_counter() - last, 3)
        last = time.perf_counter()

    cache = cachekd.open_cache(url)
    lap("open")
    dataset = cachekd.CacheDataset(cache, order=Order(shuffle_shards=shuffle_shards))
    lap("dataset")
    order = iter(cachekd.EpochSampler(dataset, seed=0))
    lap("order")
    collate = cachekd.Collator()
    collate(dataset.__getitems__(list(islice(order, BATCH))))
    lap("first_batch")
    total = round(last - started, 3)
    collate(dataset.__getitems__(list(islice(order, BATCH))))
    lap("second_batch")
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    kilobytes = {words[0]: int(words[1]) for words in lines if words[-1] == "kB"}
    return {
        "seconds": laps,
        "seconds_to_first_batch": total,
        "shards_open_after_two_batches": len(cache._open),
        "peak_rss_mb": round(kilobytes["VmHWM:"] / 1024),
        "anonymous_mb": round(kilobytes["RssAnon:"] / 1024),
    }


def forget(folder: Path) -> None:
    """Ask the kernel to drop the pages of all files below a folder (they are synced)."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def startup(folder: Path, gigabytes: float) -> dict[str, Any]:
    """First batches of a cache of a size, in processes of their own."""
    one = Shape(shards=1, documents=DOCUMENTS, tokens=TOKENS)
    shard_bytes = write_cache(folder / "one", one)
    shape = Shape(
        shards=max(1, round(gigabytes * 1e9 / shard_bytes)), documents=DOCUMENTS, tokens=TOKENS
    )
    made = folder / f"cache-{gigabytes:g}"
    row: dict[str, Any] = {"shards": shape.shards, "samples": shape.shards * DOCUMENTS}
    row["gigabytes"] = round(write_cache(made, shape) / 1e9, 2)
    row["shard_megabytes"] = round(shard_bytes / 1e6, 1)
    for name, window in (("default", 0), ("shuffle_shards 4", 4)):
        forget(made)
        command = [sys.executable, __file__, "--first-batch", str(made), "--window", str(window)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row[name] = json.loads(output)
        print(gigabytes, name, row[name], file=sys.stderr, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.1])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--first-batch", help=argparse.SUPPRESS)
    parser.add_argument("--window", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.first_batch:
        print(json.dumps(first_batch(arguments.first_batch, arguments.window)))
        return
    load = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        read = throughput(folder, arguments.repeats)
        sizes = {}
        for size in arguments.gigabytes:
            with tempfile.TemporaryDirectory(dir=folder) as own:
                sizes[f"{size:g} GB"] = startup(Path(own), size)
    save(
        "loader",
        {
            "document_tokens": TOKENS,
            "batch": BATCH,
            "vocabulary": Shape(shards=1, documents=1, tokens=2).vocab,
            "reading": read,
            "first_batch": sizes,
            "load_1min_at_start": load,
            "note": "one thread; encoded targets repeat, keys and token ids do not; other work ran "
            "on the machine",
        },
    )


if __name__ == "__main__":
    main()
