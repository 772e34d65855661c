"""The order of an epoch: of samples, or of packed rows of them.

In: a dataset, a seed and an epoch. Out: places in the dataset. By default the order depends on the
seed, the epoch and which samples there are, and on nothing else: not on shards, on plans, or on how
the samples are spread over caches. With a mix it depends on which cache a sample is from, with
windows of shards on the shards as well. Ranks and workers change it never: where the last batches
of an epoch are short, several processes get places that train nothing (`Filler`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler

from cachekd.data.packing import pack
from cachekd.errors import ConfigError
from cachekd.training.ahead import followed, remote_shards
from cachekd.training.mixture import check_weights
from cachekd.training.ranks import ranked, ranked_names, ranks
from cachekd.types import Int32, Int64

if TYPE_CHECKING:
    from cachekd.training.loader import CacheDataset


class Filler(int):
    """Place of a sample of which a batch takes one token and no trained row.

    Processes that train together need as many batches as each other, of one size. What is missing
    at the end of an epoch must not be a sample that counts: it would count twice.
    """


Index = int | tuple[int, ...]
Ordered = Callable[[Int64], Int64]
_ALWAYS = "-1"  # in place of an epoch: what stays the same in all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What an epoch is made of, beside its seed.

    Attributes:
        mix: times that the samples of a cache are seen in an epoch, by name; 1 for others.
        shuffle_shards: 0 shuffles all samples; n takes n shards at a time and shuffles within.
    """

    mix: Mapping[str, float] = field(default_factory=dict)
    shuffle_shards: int = 0

    def check(self, names: Sequence[str], *, mixture: bool) -> None:
        """Refuse what cannot be done with caches of these names.

        Raises:
            ConfigError: says why.
        """
        check_weights("mix", self.mix, names)
        if self.mix and mixture:
            raise ConfigError(
                "mix: the caches are mixed at the same positions (mixture), so that an epoch has "
                "no samples of one of them; leave one of the two out"
            )
        if self.shuffle_shards < 0:
            raise ConfigError(f"shuffle_shards: expected 0 or more; found {self.shuffle_shards}")


class EpochSampler(Sampler[Index]):
    """Order of samples, or of packed rows, as a pure function of seed, epoch and content.

    With a capacity the samples are packed once, in the order of the seed, and the packed rows are
    put in a new order every epoch. The number of rows is the same in each epoch.

    A mix (`Order.mix`) gives floor(w) whole passes over a cache and a part of it that moves on from
    epoch to epoch, until all of it was seen and it begins again. Each cache is packed for itself.

    Windows (`Order.shuffle_shards`) put the shards in a new order every epoch and shuffle samples
    within so many of them, so that a pass reads each shard once. Packed rows stay within a window:
    windows are then made once, and put in a new order.

    Args:
        dataset: what is ordered; its `Order` says how.
        seed: changes the order and the packing.
        capacity: tokens of a packed row; None yields single samples.
        multiple: an epoch is filled up to a multiple of this many places, with `Filler`s.

    Raises:
        ConfigError: a sample is longer than the capacity.
    """

    def __init__(
        self, dataset: CacheDataset, seed: int, capacity: int | None = None, multiple: int = 1
    ) -> None:
        self.epoch = 0
        self._seed = seed
        self._multiple = multiple
        self._packed = capacity is not None
        self._window = dataset.order.shuffle_shards
        self._remote = remote_shards(dataset)
        if self._remote is not None:
            self._remote.warn_if_small(self._window)
        self._shards: list[str] = []
        self._shard_P: Int64 | None = None
        if self._window:
            self._shards, self._shard_P = dataset.shards()
        # Packed row i holds the members from ends[i-1] to ends[i].
        self._members = np.arange(len(dataset), dtype=np.int32)
        self._ends = np.arange(1, len(dataset) + 1, dtype=np.int32)
        mixed = bool(dataset.order.mix)
        if capacity is not None:
            self._pack(dataset, capacity, mixed)
        firsts = self._members[np.concatenate([[0], self._ends[:-1]])]
        # A sample is in one packed row, so that its first one tells what a row is.
        self._identities = dataset.identities()[firsts]
        self._shard = None if self._shard_P is None else self._shard_P[firsts]
        self._caches = _Passes(dataset, firsts) if mixed else None
        self._length = len(self._ends) if self._caches is None else self._caches.length

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self._length // self._multiple) * self._multiple

    def __iter__(self) -> Iterator[Index]:
        order = self._order(self.epoch)
        starts = np.concatenate([[0], self._ends])
        indices: Iterator[Index] = map(int, self._members[order])
        if self._packed:
            indices = (tuple(self._members[starts[i] : self._ends[i]].tolist()) for i in order)
        if self._remote is not None:
            members = [self._members[starts[i] : self._ends[i]] for i in order]
            indices = followed(self._remote, np.concatenate(members), indices)
        filler = Filler(self._members[order[-1]])
        fillers: list[Index] = [(filler,) if self._packed else filler]
        return chain(indices, fillers * (len(self) - self._length))

    def _order(self, epoch: int) -> Int64:
        """Numbers of the rows in the order of an epoch."""
        passes = [np.arange(len(self._ends))]
        if self._caches is not None:
            passes = self._caches.rows(epoch, self._ranked_always)
        seen = [
            ranks(self._identities[rows], f"{self._seed}/{epoch}" + (f"/{n}" if n else ""))
            for n, rows in enumerate(passes)
        ]
        rows = np.concatenate(passes)
        first_by = None if self._shard is None else self._windows(epoch)[self._shard[rows]]
        return rows[ranked(np.concatenate(seen), first_by)]

    def _ranked_always(self, rows: Int64) -> Int64:
        """These rows in the order of the seed."""
        return rows[ranked(ranks(self._identities[rows], f"{self._seed}/{_ALWAYS}"))]

    def _windows(self, epoch: int | str) -> Int64:
        """Place of each shard's window in an epoch, [S]."""
        if not self._packed or epoch == _ALWAYS:
            return ranked_names(self._shards, f"{self._seed}/{epoch}") // self._window
        made = self._windows(_ALWAYS)
        names = [str(number) for number in range(int(made.max()) + 1)]
        return ranked_names(names, f"{self._seed}/{epoch}")[made]

    def _pack(self, dataset: CacheDataset, capacity: int, mixed: bool) -> None:
        """Pack samples with those of their window, and of their cache if caches are mixed."""
        longest = int(dataset.lengths.max())
        if longest > capacity:
            raise ConfigError(
                f"packing: a sample has {longest} tokens, a packed row {capacity}. "
                "Set max_length to cut samples, or do not pack"
            )
        group_P = np.zeros(len(dataset), np.int64)
        if self._shard_P is not None:
            group_P = self._windows(_ALWAYS)[self._shard_P]
        if mixed:
            group_P = group_P * len(dataset.caches) + dataset.cache_numbers
        order = ranked(ranks(dataset.identities(), f"{self._seed}/{_ALWAYS}"), group_P)
        bounds = np.flatnonzero(np.diff(group_P[order])) + 1
        members: list[Int32] = []
        counts: list[int] = []
        for own in np.split(order, bounds):
            packed = pack(dataset.lengths[own].tolist(), capacity)
            places = np.fromiter(chain.from_iterable(packed), np.int32, len(own))
            members.append(own[places].astype(np.int32))
            counts += map(len, packed)
        self._members = np.concatenate(members)
        self._ends = np.cumsum(counts, dtype=np.int32)


class _Passes:
    """Which rows of each cache an epoch takes, and how often.

    Args:
        dataset: its order names the weights of its caches.
        firsts: a sample of each row.
    """

    def __init__(self, dataset: CacheDataset, firsts: Int32) -> None:
        numbers = dataset.cache_numbers[firsts]
        self._caches: list[tuple[Int64, int, int]] = []
        for number, cache in enumerate(dataset.caches):
            rows = np.flatnonzero(numbers == number)
            whole, part = divmod(dataset.order.mix.get(cache.name, 1.0), 1.0)
            count = max(1, round(part * len(rows))) if part and len(rows) else 0
            self._caches.append((rows, int(whole), count))
        self.length = sum(len(rows) * whole + part for rows, whole, part in self._caches)

    def rows(self, epoch: int, ordered: Ordered) -> list[Int64]:
        """Rows of an epoch: one array for each time that some of them are seen."""
        passes = []
        for number in range(1 + max(whole for _, whole, _ in self._caches)):
            taken = [np.empty(0, np.int64)]
            for rows, whole, part in self._caches:
                if number < whole:
                    taken.append(rows)
                elif number == whole and part:
                    at = (epoch * part + np.arange(part)) % len(rows)
                    taken.append(ordered(rows)[at])
            passes.append(np.concatenate(taken))
        return passes
