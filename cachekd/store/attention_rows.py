"""Whether the query rows of a cache's attention are those that its samples train on."""

from __future__ import annotations

from cachekd.data.attention import drawn_rows
from cachekd.errors import DataError
from cachekd.store.attention_shards import AttentionShard
from cachekd.store.index import KeyIndex
from cachekd.store.io import Location
from cachekd.store.logits_rows import trained_of
from cachekd.store.samples import SampleTable
from cachekd.store.state import CacheState


def check_query_rows(
    location: Location, state: CacheState, samples: SampleTable, index: KeyIndex
) -> None:
    """Refuse attention that lacks rows which a sample of its key trains on.

    It happens where equal token ids came with other roles, in runs or caches of their own, and
    only response rows were captured. No layer is decoded.

    Raises:
        DataError: says how many samples lack rows.
    """
    if state.identity.attention is None or state.identity.attention["rows"] == "all":
        return
    assert state.identity.attention_id is not None, "it goes with the facts"
    facts, shards, lacking = state.attention(), {}, 0
    for i, key in enumerate(samples.keys):
        place = index.find(key)
        assert place is not None, "samples without targets were left out"
        digest = index.shards[place[0]]
        if digest not in shards:
            shards[digest] = AttentionShard(location, facts[digest], state.identity.attention_id)
        rows = int(samples.lengths[i]) - 1
        wanted = trained_of(samples, i) & drawn_rows(shards[digest].spec, key, rows)
        wanted[shards[digest].query_rows(place[1], rows)] = False
        lacking += bool(wanted.any())
    if lacking:
        raise DataError(
            f"{location.url}: {lacking} samples train on rows whose attention was not captured: "
            "the same token ids were captured with other roles (--attention-rows response). "
            "Capture them into a new cache, with --attention-rows all"
        )
