"""Whether the rows of a cache's logits are those that its samples train on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cachekd.data.alignment import LossMask, trained_rows
from cachekd.errors import DataError
from cachekd.store.index import KeyIndex
from cachekd.store.io import Location
from cachekd.store.priors import Priors
from cachekd.store.samples import SampleTable
from cachekd.store.shards import Groups, Shard
from cachekd.store.skipped import in_force
from cachekd.store.state import CacheState


def trained_of(samples: SampleTable, place: int) -> NDArray[np.bool_]:
    """Rows that a sample trains on where no mask is asked for, bool [L-1]."""
    prompt = int(samples.prompt_lengths[place])
    return trained_rows(samples.roles(place), None if prompt < 0 else prompt, LossMask.AUTO)


def check_rows(
    location: Location, state: CacheState, samples: SampleTable, index: KeyIndex
) -> None:
    """Refuse records that lack rows which a sample of their key trains on.

    It happens where equal token ids came with other roles, in runs or caches of their own.

    Raises:
        DataError: says how many samples lack rows.
    """
    shards, groups, priors, facts = {}, Groups(), Priors(location), state.shards()
    let_go = in_force(state.skipped(), index)
    lacking = 0
    for i, key in enumerate(samples.keys):
        place = index.find(key)
        assert place is not None, "samples without targets were left out"
        digest = index.shards[place[0]]
        if digest not in shards:
            shards[digest] = Shard(
                location, facts[digest], state.identity.capture_id, groups, priors
            )
        _, _, targets = shards[digest].record(place[1])
        wanted = trained_of(samples, i)
        wanted[list(let_go.get(key, ()))] = False
        lacking += bool((wanted & (np.diff(targets.offsets) == 0)).any())
    if lacking:
        raise DataError(
            f"{location.url}: {lacking} samples train on rows that were not captured: the same "
            "token ids were captured with other roles (--rows response). Capture them into a new "
            "cache, with --rows all"
        )
