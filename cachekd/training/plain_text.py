"""Plain text beside the student's own: the language-modelling part of on-policy objectives.

In: samples of data files. Out: for every batch as many of them, in an order that is a function of
the seed and of the batch's place in the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cachekd.training.prompts import TextSamples, Visited
from cachekd.types import Record, Role


class PlainText:
    """Text for every batch; all of it is seen before any is seen again.

    Args:
        samples: the text.
        seed: of the order.
        rounds: batches of an epoch, alike in all processes.
        batch: samples of a batch.
        rank: number of this process.
        world: number of processes.
    """

    def __init__(
        self, samples: TextSamples, *, seed: int, rounds: int, batch: int, rank: int, world: int
    ) -> None:
        self._samples, self._seed = samples, seed
        self._rounds, self._batch, self._rank, self._world = rounds, batch, rank, world

    def records(self, visited: Sequence[Visited]) -> list[Record]:
        """As many records as visits; every token of them is trained."""
        visit = visited[0].visit
        number = visit.epoch * self._rounds + visit.round
        first = (number * self._world + self._rank) * self._batch
        return [self._at(first + i) for i in range(len(visited))]

    def _at(self, place: int) -> Record:
        turn, at = divmod(place, len(self._samples))
        order = np.random.default_rng([self._seed, turn]).permutation(len(self._samples))
        record = self._samples[int(order[at])]
        roles = np.full(len(record.roles), Role.ASSISTANT, np.uint8)
        return replace(record, roles=roles, prompt_length=None)
