"""Which rows the records have that an import committed: looked up where equal texts come again.

Comes in: keys that are committed. Goes out: their rows with targets. What is committed is read when
such a key is asked for that was not there at the last reading.
"""

from __future__ import annotations

import numpy as np

from cachekd.exchange import Mask
from cachekd.store.index import KeyIndex
from cachekd.store.io import Location
from cachekd.store.priors import Priors
from cachekd.store.shards import Groups, Shard
from cachekd.store.skipped import Skipped, in_force
from cachekd.store.state import CacheState, read_state


class CommittedRows:
    """Rows with targets of what a cache holds.

    Args:
        location: the cache; nobody needs to have sealed it.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        self._groups, self._priors = Groups(), Priors(location)
        self._state: CacheState | None = None
        self._index: KeyIndex | None = None
        self._let_go: Skipped = {}

    def of(self, key: bytes) -> Mask:
        """Rows of a record that have targets, or were let go as bad ones, bool [L-1]."""
        place = None if self._index is None else self._index.find(key)
        if self._state is None or self._index is None or place is None:
            self._state = read_state(self._location, skip_broken_units=True)
            self._index = self._state.index()
            self._let_go = in_force(self._state.skipped(), self._index)
            place = self._index.find(key)
            assert place is not None, "it was committed"
        facts = self._state.shards()[self._index.shards[place[0]]]
        capture_id = self._state.identity.capture_id
        shard = Shard(self._location, facts, capture_id, self._groups, self._priors)
        held_N = np.diff(shard.record(place[1])[2].offsets) > 0
        held_N[list(self._let_go.get(key, ()))] = True
        return held_N
