"""The order of an epoch: of samples, or of packed rows of them.

In: a dataset, a seed and an epoch. Out: places in the dataset. The order depends on the seed, the
epoch and which samples there are, and on nothing else: not on shards, on plans, or on how the
samples are spread over caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from itertools import chain

import numpy as np
from torch.utils.data import Sampler

from cachekd.data.packed import Keys
from cachekd.data.packing import pack
from cachekd.errors import ConfigError
from cachekd.training.loader import CacheDataset, Index
from cachekd.types import Int64


class EpochSampler(Sampler[Index]):
    """Order of samples, or of packed rows, as a pure function of seed, epoch and sample ids.

    With a capacity the samples are packed once, in the order of the seed, and the packed rows are
    put in a new order every epoch: the number of rows is the same in each.

    Args:
        dataset: what is ordered.
        seed: changes the order and the packing.
        capacity: tokens of a packed row; None yields single samples.

    Raises:
        ConfigError: a sample is longer than the capacity.
    """

    def __init__(self, dataset: CacheDataset, seed: int, capacity: int | None = None) -> None:
        self.epoch = 0
        self._seed = seed
        self._dataset = dataset
        self._packed = capacity is not None
        # Packed row i holds the members from ends[i-1] to ends[i].
        self._members = np.arange(len(dataset), dtype=np.int32)
        self._ends = np.arange(1, len(dataset) + 1, dtype=np.int32)
        if capacity is not None:
            longest = int(dataset.lengths.max())
            if longest > capacity:
                raise ConfigError(
                    f"packing: a sample has {longest} tokens, a packed row {capacity}. "
                    "Set max_length to cut samples, or do not pack"
                )
            order = self._ranked(-1)
            packed = pack(dataset.lengths[order].tolist(), capacity)
            places = np.fromiter(chain.from_iterable(packed), np.int32, len(dataset))
            self._members = order[places].astype(np.int32)
            self._ends = np.cumsum([len(one) for one in packed], dtype=np.int32)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[Index]:
        for number in map(int, self._ranked(self.epoch)):
            items = self._items(number)
            yield items if self._packed else items[0]

    def _ranked(self, epoch: int) -> Int64:
        """Numbers of the rows in the order of an epoch."""
        ranks = Keys.of(_rank(self._identity(i), self._seed, epoch) for i in range(len(self)))
        return np.argsort(ranks.array, kind="stable").astype(np.int64)

    def _items(self, number: int) -> tuple[int, ...]:
        start = int(self._ends[number - 1]) if number else 0
        return tuple(self._members[start : self._ends[number]].tolist())

    def _identity(self, number: int) -> bytes:
        """Ids of a row's samples; the capture parts equal tokens under different teachers."""
        dataset = self._dataset
        parts = (
            dataset.sample_ids[i] + dataset.capture_id(i).encode() for i in self._items(number)
        )
        return b"".join(parts)


def _rank(identity: bytes, seed: int, epoch: int) -> bytes:
    key = f"{seed}/{epoch}".encode()
    return blake2b(identity, digest_size=16, key=key[:64]).digest()
