"""Digests that were met in an import: sixteen bytes each, and how often each was.

Comes in: digests, some thousand at a time. Goes out: how often each of some was met. They are kept
in sorted runs, each at least twice as long as the next: what is added is merged into few runs, and
a look-up searches a handful of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cachekd.data.packed import Keys, Packed
from cachekd.types import Int64


class Seen:
    """A growing multiset of digests.

    Args:
        keys: those to begin with.
    """

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._runs: list[Packed] = []
        self.add(Keys.of(keys))

    def counts(self, keys: Keys) -> Int64:
        """How often each of these digests was added, [P]."""
        found = np.zeros(len(keys), np.int64)
        for run in self._runs:
            last = np.searchsorted(run, keys.array, side="right")
            found += last - np.searchsorted(run, keys.array, side="left")
        return found

    def add(self, keys: Keys) -> None:
        """Take these in, each as often as it stands there."""
        run = np.sort(keys.array, kind="stable")
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        if len(run):
            self._runs.append(run)
