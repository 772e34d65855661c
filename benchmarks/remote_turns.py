"""What one process does with a cache in `bench_remote`, and the disk that it takes meanwhile.

Comes in: where the cache is, and the folder and bound of the local cache. Goes out: seconds, and
the most bytes that the folder held while the process ran, which is polled from outside of it.
"""

from __future__ import annotations

import hashlib
import os
import re
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF
from typing import Any

import torch
from torch.utils.data import DataLoader

import cachekd
from cachekd.config import LocationConfig, TrainConfig
from cachekd.store.local_cache import LOCK
from cachekd.store.retries import counted
from cachekd.store.settings import using
from cachekd.training.order import Order

BATCH = 8
_POLL_SECONDS = 0.01
_MAPPED = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+) +(/.*) \(deleted\)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A cache, and how it is read.

    Attributes:
        url: of the cache.
        held: folder of the local cache.
        limit: its bound in bytes.
        window: `Order.shuffle_shards`.
        workers: of the data loader.
    """

    url: str
    held: Path
    limit: int
    window: int = 4
    workers: int = 0

    def config(self) -> LocationConfig:
        """The local cache as the commands are told of it."""
        return LocationConfig(local_cache=str(self.held), local_cache_size=str(self.limit))


def read_epoch(place: Place) -> dict[str, Any]:
    """One epoch of reading, decoding and collating of an opened cache."""
    torch.set_num_threads(1)
    with using(place.config()):
        dataset = cachekd.CacheDataset(place.url, order=Order(shuffle_shards=place.window))
        loader = DataLoader(
            dataset,
            batch_size=BATCH,
            sampler=cachekd.EpochSampler(dataset, seed=0),
            num_workers=place.workers,
            collate_fn=cachekd.Collator(),
        )
        started, processor, seen = time.perf_counter(), _processor(), hashlib.blake2b()
        for batch in loader:
            seen.update(batch["input_ids"].numpy().tobytes())
    return {
        "seconds": time.perf_counter() - started,
        "cpu": _processor() - processor,
        "seen": seen.hexdigest(),
        "files_fetched": counted().get("files_fetched", 0),
    }


def train_epoch(place: Place, student: Path, out: Path) -> dict[str, Any]:
    """One epoch of `cachekd train`; seconds are those of its loop, ``whole`` of all of the call."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    report = cachekd.train(
        TrainConfig(
            cache=(place.url,),
            student=str(student),
            output_dir=str(out),
            objective="kd",
            shuffle_shards=place.window,
            local_cache=str(place.held),
            local_cache_size=str(place.limit),
            training={
                "num_train_epochs": 1,
                "per_device_train_batch_size": BATCH,
                "dataloader_num_workers": place.workers,
                "learning_rate": 1e-4,
                "use_cpu": True,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                "seed": 0,
            },
        )
    )
    return {
        "seconds": report["throughput"]["training_seconds"],
        "cpu": _processor(),
        "whole": time.perf_counter() - started,
        "waits": report["throughput"]["data_wait_share"],
        "seen": f"{report['train_loss']:.6f}",
    }


def _processor() -> float:
    """Processor seconds of this process, which was forked for one turn, and of its workers."""
    own, workers = (resource.getrusage(who) for who in (RUSAGE_SELF, RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + workers.ru_utime + workers.ru_stime


def open_laps(place: Place) -> dict[str, float]:
    """Seconds to open a cache, order an epoch of all its samples, and read the first batch."""
    import pyarrow.compute  # noqa: F401 (imports take longer than the rest, the same every time)
    import s3fs  # noqa: F401

    laps, last, processor = dict[str, float](), time.perf_counter(), _processor()

    def lap(name: str) -> None:
        nonlocal last
        laps[name] = time.perf_counter() - last
        last = time.perf_counter()

    with using(place.config()):
        cache = cachekd.open_cache(place.url)
        lap("open")
        laps["cpu"] = _processor() - processor
        dataset = cachekd.CacheDataset(cache, order=Order(shuffle_shards=place.window))
        order = iter(cachekd.EpochSampler(dataset, seed=0))
        first = list(islice(order, BATCH))
        lap("order")
        cachekd.Collator()(dataset.__getitems__(first))
        lap("first_batch")
    return {**laps, "seconds": laps["open"]}


def open_partial(place: Place) -> dict[str, float]:
    """Seconds to open a cache without its seal: every commit record is read."""
    started = time.perf_counter()
    with using(place.config()):
        cachekd.open_cache(place.url, partial=True)
    return {"seconds": time.perf_counter() - started}


def watched(held: Path, act: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """What a function returns in a forked process, with the disk taken while it ran.

    ``peak`` are bytes of the files in a folder; ``peak_mapped`` also counts files that were taken
    away there and that the process, or one that it started, has mapped still.
    """
    ours, theirs = get_context("fork").Pipe(duplex=False)
    process = get_context("fork").Process(target=_run, args=(theirs, act, arguments))
    process.start()
    theirs.close()
    peak = peak_mapped = number = 0
    while not ours.poll(_POLL_SECONDS):
        bytes_now, number = folder_bytes(held), number + 1
        peak = max(peak, bytes_now)
        if number % 5 == 0 and bytes_now:  # reading maps takes milliseconds of the other's time
            peak_mapped = max(peak_mapped, bytes_now + _taken_away(held, process.pid))
    result: dict[str, Any] = ours.recv()
    process.join()
    return {**result, "peak": peak, "peak_mapped": max(peak, peak_mapped)}


def _run(answer: Connection, act: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    answer.send(act(*arguments))


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder; what goes away meanwhile does not count."""
    total = 0
    with suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):
                if entry.name != LOCK:  # its size is a count
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def _taken_away(folder: Path, pid: int | None) -> int:
    """Bytes of files that are no longer in a folder and that these processes have mapped."""
    sizes: dict[str, int] = {}
    for own in _family(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{own}/maps").read_text().splitlines():
                found = _MAPPED.match(line)
                if found and found[4].startswith(str(folder)):
                    sizes[found[3]] = int(found[2], 16) - int(found[1], 16)
    return sum(sizes.values())


def _family(pid: int | None) -> Iterator[int | None]:
    yield pid
    with suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _family(int(child))
