"""The order of an on-policy run: which prompts are answered together, and how often each is used.

In: the order of an epoch, sizes of collections and batches, the number of processes. Out: `Visit`s
such that a loader which deals batches out to processes in turn gives each process the prompts that
it answered itself. All of it is a pure function of seed, epoch and content.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import numpy as np
from torch.utils.data import Sampler

from cachekd.errors import ConfigError
from cachekd.training.order import EpochSampler
from cachekd.training.prompts import Prompts, Visit
from cachekd.types import Int64

if TYPE_CHECKING:
    from cachekd.training.loader import CacheDataset

_log = logging.getLogger(__name__)


class VisitSampler(Sampler[Visit]):
    """Visits of an epoch.

    The prompts of an epoch, in its order, are cut into groups; the last one is filled up from the
    beginning. Of a group each process has every world-th prompt, and goes over its own ``turns``
    times, in a new order each.

    Args:
        prompts: what is visited.
        seed: of the order.
        batch: prompts of a process's batch.
        world: number of processes.
        collect: prompts of a group over all processes; 0: one batch of each.
        turns: passes over a group.

    Raises:
        ConfigError: a group cannot be cut into batches of all processes.
    """

    def __init__(
        self,
        prompts: Prompts,
        seed: int,
        batch: int,
        world: int = 1,
        collect: int = 0,
        turns: int = 1,
    ) -> None:
        # Samples of data files have no caches, and no mix or windows of shards that ask for them.
        self._order = EpochSampler(cast("CacheDataset", prompts.samples), seed)
        self._usable = np.asarray(prompts.starts >= 0)
        self._seed, self._batch, self._world, self._turns = seed, batch, world, turns
        step = batch * world
        if collect % step:
            raise ConfigError(
                f"collect: expected a multiple of {step}, the prompts of a batch of all processes "
                f"(per_device_train_batch_size {batch} x {world}); found {collect}"
            )
        self.group_size = collect or step
        self._groups = -(-int(self._usable.sum()) // self.group_size)
        if collect > int(self._usable.sum()):
            _log.warning(
                "collect: a collection is %d prompts, and the data has %d: each is answered once "
                "a collection, and some are trained on more often",
                collect,
                int(self._usable.sum()),
            )

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration gives."""
        return self._order.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        return self._groups * self.group_size * self._turns

    def __iter__(self) -> Iterator[Visit]:
        epoch, order = self.epoch, self._prompts()
        rounds = self.group_size // (self._batch * self._world)
        for group in range(self._groups):
            for turn in range(self._turns):
                own = [self._turned(order, group, rank, turn, epoch) for rank in range(self._world)]
                for part in range(rounds):
                    number = (group * self._turns + turn) * rounds + part
                    for samples in own:
                        for sample in samples[part * self._batch : (part + 1) * self._batch]:
                            yield Visit(int(sample), epoch, group, turn, number)

    def own(self, visit: Visit, rank: int) -> list[int]:
        """All prompts of the group of a visit that a process answers, in the order of the epoch."""
        before = self.epoch
        self.set_epoch(visit.epoch)
        order = self._prompts()
        self.set_epoch(before)
        return [int(sample) for sample in self._members(order, visit.group, rank)]

    def _prompts(self) -> Int64:
        order = np.fromiter(self._order, np.int64)
        order = order[self._usable[order]]
        filled: Int64 = np.resize(order, self._groups * self.group_size)
        return filled

    def _members(self, order: Int64, group: int, rank: int) -> Int64:
        start = group * self.group_size
        return order[start + rank : start + self.group_size : self._world]

    def _turned(self, order: Int64, group: int, rank: int, turn: int, epoch: int) -> Int64:
        members = self._members(order, group, rank)
        if turn == 0:
            return members
        seed = np.random.SeedSequence([self._seed, epoch, group, rank, turn])
        shuffled: Int64 = np.random.default_rng(seed).permutation(members)
        return shuffled
