"""One process that captures, seals, reads and trains from caches, over and over: does it leak?

A round makes a cache in a new folder and takes it away at its end. In between, for every run: a
plan and its units are committed (synced, as a capture does), the cache is opened as far as it is,
sealed and opened again; after the last, two epochs are read and collated. In every round a shard is
deleted, found missing, and its unit made again, as a resume does. Every fourth round also reads
through a `DataLoader` with two workers.

Looked at after each round: resident memory, open descriptors, threads, children, entries of
/dev/shm with this process's number, and files of the store's temporary names. Result: the slope
of resident memory over units (least squares, the first quarter left out, when caches of the
interpreter and of the allocator fill), and whether the counts ended where they were.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import tempfile
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import resident, save
from store_caches import append_run, commit_units

import cachekd
from cachekd.store.io import Location
from cachekd.store.local import TEMPORARY
from cachekd.store.seal import seal
from cachekd.store.state import read_state

RUNS, UNITS, ROWS, BATCH = 3, 80, 4, 32
GOAL_BYTES = 1 << 20  # a ten thousand units


def read_epochs(cache: cachekd.Cache, epochs: int) -> int:
    """Records read in shuffled batches, and collated."""
    dataset, collate, records = cachekd.CacheDataset(cache), cachekd.Collator(), 0
    sampler = cachekd.EpochSampler(dataset, seed=0)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        order = list(sampler)
        for at in range(0, len(order), BATCH):
            collate(dataset.__getitems__(order[at : at + BATCH]))
        records += len(order)
    return records


def read_in_workers(cache: cachekd.Cache) -> int:
    """Batches that two workers read."""
    dataset = cachekd.CacheDataset(cache)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=BATCH,
        sampler=cachekd.EpochSampler(dataset, seed=0),
        collate_fn=cachekd.Collator(),
        num_workers=2,
    )
    return sum(1 for _ in loader)


def lose_and_resume(location: Location) -> None:
    """Delete a shard of the first unit; a resume finds that, and makes the unit again."""
    state = read_state(location)
    (plan, number), record = next(iter(state.units.items()))
    location.remove(record.files()[0])
    found = read_state(location, skip_broken_units=True)
    assert found.missing_units(plan) == [number], "the loss was not found"
    commit_units(location, found.plans[plan], plan, [number])
    assert len(read_state(location, skip_broken_units=True).units) == len(state.units)


def one_round(folder: Path, number: int) -> int:
    """A cache from its first unit to its end; units committed, one of them twice."""
    location, units = Location(str(folder)), 0
    for run in range(RUNS):
        first = (number * RUNS + run) * UNITS * ROWS
        units += append_run(location, first, UNITS * ROWS, ROWS, sequence=run)
        partial = cachekd.open_cache(location.url, partial=True)
        assert len(partial) == units * ROWS
        if run == 0:
            lose_and_resume(location)
        seal(location)
        cache = cachekd.open_cache(location.url)
    assert read_epochs(cache, 2) == 2 * len(cache)
    if number % 4 == 0:
        assert read_in_workers(cache) == -(-len(cache) // BATCH)
    return units + 1


def look(folder: Path) -> dict[str, int]:
    """What this process holds."""
    gc.collect()
    own = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    shared = [path for path in Path("/dev/shm").iterdir() if _mine(path)]
    return {
        "rss_bytes": resident("VmRSS"),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "children": len(own),
        "shared_memory": len(shared),
        "temporary_files": sum(1 for path in folder.rglob("*") if path.name.startswith(TEMPORARY)),
    }


def _mine(path: Path) -> bool:
    """Whether a name of /dev/shm is one of this process: torch puts the process id into it."""
    return str(os.getpid()) in path.name.replace("_", " ").split()


def slope(rounds: list[dict[str, int]]) -> dict[str, Any]:
    """Bytes of resident memory a ten thousand units, by least squares, and its standard error."""
    kept = rounds[len(rounds) // 4 :]
    units = np.array([row["units"] for row in kept], float)
    rss = np.array([row["rss_bytes"] for row in kept], float)
    centred = units - units.mean()
    each = centred @ rss / (centred @ centred)
    rest = rss - rss.mean() - each * centred
    error = np.sqrt(rest @ rest / max(1, len(kept) - 2) / (centred @ centred))
    return {
        "rss_bytes_each_10000_units": round(1e4 * each),
        "standard_error": round(1e4 * error),
        "goal_bytes": GOAL_BYTES,
        "met": bool(1e4 * each < GOAL_BYTES),
    }


def constant(rounds: list[dict[str, int]]) -> dict[str, Any]:
    """Least and most of each count over all rounds."""
    names = ("descriptors", "threads", "children", "shared_memory", "temporary_files")
    return {
        name: {"least": min(row[name] for row in rounds), "most": max(row[name] for row in rounds)}
        for name in names
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="two rounds; saves nothing")
    arguments = parser.parse_args()
    rounds: list[dict[str, int]] = []
    started, units = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as base:
        for number in count():
            folder = Path(base, f"round-{number}")
            units += one_round(folder, number)
            rounds.append({"units": units, **look(folder)})
            shutil.rmtree(folder)
            if units >= arguments.units or (arguments.quick and len(rounds) == 2):
                break
    save(
        "soak",
        {
            "units": units,
            "rounds": len(rounds),
            "records": units * ROWS,
            "seconds": round(time.perf_counter() - started),
            "slope": slope(rounds),
            "counts": constant(rounds),
            "trace": rounds[:: max(1, len(rounds) // 40)],
        },
        keep=not arguments.quick,
    )


if __name__ == "__main__":
    main()
