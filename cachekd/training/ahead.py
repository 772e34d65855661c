"""The order of an epoch, told to the threads that fetch shards of remote caches ahead of it.

In: a dataset and the samples of an epoch in their order. Out: the same order, while shards are
fetched by the time they are needed. Local caches need none of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from cachekd.store.ahead import Ahead, Wanted
from cachekd.types import Int64

if TYPE_CHECKING:
    from cachekd.training.loader import CacheDataset
    from cachekd.training.order import Index

# What a loader and its workers may have been told to read, and not read yet: the shards of these
# samples still need their room.
_LAG = 256
_log = logging.getLogger(__name__)


class Shards:
    """Which file holds the targets of each sample of a dataset, where that is a remote one.

    Attributes:
        numbers: place in ``files`` of each sample's, [P]; -1 where it is local.
        files: bytes of each file, and what fetches it.
        limit: bytes that the local cache may hold.
    """

    def __init__(self, dataset: CacheDataset) -> None:
        digests, shard_P = dataset.shards()
        self.files: list[tuple[int, Callable[[], None]] | None] = [None] * len(digests)
        self.limit = 0
        for number, cache in enumerate(dataset.caches):
            if not cache.held_bytes:
                continue
            self.limit = cache.held_bytes
            own = np.unique(shard_P[dataset.cache_numbers == number]).tolist()
            for at in own:
                digest = digests[at]
                self.files[at] = cache.bytes_of(digest), partial(cache.fetch, digest)
        self.numbers = np.array([-1 if f is None else i for i, f in enumerate(self.files)])[shard_P]

    def warn_if_small(self, window: int) -> None:
        """Say so where shards would be fetched again and again."""
        sizes = sorted((file[0] for file in self.files if file is not None), reverse=True)
        at_once = sum(sizes[:window] if window else sizes)
        if at_once > self.limit:
            _log.warning(
                "shards of %.2f GB are read at once and the local cache holds %.2f GB: most are "
                "fetched many times. Use --shuffle-shards with few shards, or raise "
                "--local-cache-size",
                at_once / 1e9,
                self.limit / 1e9,
            )

    def wanted(self, samples: Int64) -> list[Wanted]:
        """The files of samples in this order, each where it is first read."""
        numbers, firsts = np.unique(self.numbers[samples], return_index=True)
        found = []
        for at in np.argsort(firsts):
            file = self.files[int(numbers[at])] if numbers[at] >= 0 else None
            if file is not None:
                found.append(Wanted(int(firsts[at]), *file))
        return found


def remote_shards(dataset: CacheDataset) -> Shards | None:
    """What is known of the shards of a dataset; None where all its caches are local."""
    caches = getattr(dataset, "caches", ())
    return Shards(dataset) if any(cache.held_bytes for cache in caches) else None


def followed(shards: Shards, samples: Int64, order: Iterator[Index]) -> Iterator[Index]:
    """An order of samples, or of rows of several; files are fetched ahead while it is gone."""
    place = 0
    with Ahead(shards.wanted(samples), shards.limit // 2).running() as at:
        for index in order:
            at(place - _LAG)
            place += len(index) if isinstance(index, tuple) else 1
            yield index
