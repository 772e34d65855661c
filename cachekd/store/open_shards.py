"""The open shards of a cache that is read, each checked in whole when it is opened.

Comes in: the facts of the shards, by digest. Goes out: `Shard` and `AttentionShard`. Those of a
local cache stay open; of a remote one, those whose file the local cache still holds, which is
looked at whenever one is read: no disk is used for long for what was taken away.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from cachekd.errors import CorruptCache
from cachekd.store.attention_shards import AttentionFacts, AttentionShard
from cachekd.store.identity import Identity
from cachekd.store.io import Location
from cachekd.store.priors import Priors
from cachekd.store.shards import Groups, Shard, ShardFacts

_MEMORY_BYTES_HELD = 1 << 30  # of a remote cache that is read past the local one


class OpenShards:
    """Shards of one cache; a process opens its own.

    Args:
        location: the cache.
        identity: of the cache.
        facts: of its shards of logits, by digest.
        attention: of its shards of attention, by the logits shard of their documents.
    """

    def __init__(
        self,
        location: Location,
        identity: Identity,
        facts: Mapping[str, ShardFacts],
        attention: Mapping[str, AttentionFacts],
    ) -> None:
        self._made_of = location, identity, facts, attention
        self._location, self._identity = location, identity
        self._facts, self._attention_facts = facts, attention
        self.priors = Priors(location)
        self._groups = Groups()
        self._open: OrderedDict[str, Shard] = OrderedDict()
        self._attention_open: dict[str, AttentionShard] = {}
        self._evictions = -1  # of the local cache, when it was last looked at

    def __reduce__(self) -> tuple[object, ...]:
        return OpenShards, self._made_of

    def logits(self, digest: str) -> Shard:
        """A shard of logits.

        Raises:
            CorruptCache: the cache has none of this digest, or it is missing or altered.
        """
        if digest not in self._open:
            if digest not in self._facts:
                raise CorruptCache(
                    f"{self._location.url}: the index names shard {digest}, the seal does not"
                )
            facts, capture = self._facts[digest], self._identity.capture_id
            shard = Shard(self._location, facts, capture, self._groups, self.priors)
            self._open[digest] = shard
            self._let_go_oldest()
        self._open.move_to_end(digest)
        self._let_go_evicted(digest)
        return self._open[digest]

    def attention(self, digest: str) -> AttentionShard:
        """The shard of attention of the documents of a shard of logits (errors of `logits`)."""
        if digest not in self._attention_facts:
            raise CorruptCache(
                f"{self._location.url}: no attention shard goes with logits shard {digest}"
            )
        if digest not in self._attention_open:
            assert self._identity.attention_id is not None, "shards of it were found"
            self._attention_open[digest] = AttentionShard(
                self._location, self._attention_facts[digest], self._identity.attention_id
            )
        self._let_go_evicted(digest)
        return self._attention_open[digest]

    def beside(self, digest: str) -> AttentionFacts | None:
        """Facts of the shard of attention that goes with a shard of logits, if one does."""
        return self._attention_facts.get(digest)

    def _let_go_evicted(self, reading: str) -> None:
        """Close what the local cache no longer holds, but the shards that are read now."""
        if self._location.cache is None:
            return
        evictions = self._location.cache.evictions()
        if evictions == self._evictions:  # one look, however many shards are open
            return
        self._evictions = evictions
        here = self._location.cache.held()
        for digest in [*self._open]:
            if digest != reading and digest not in here:
                del self._open[digest]
        for digest in [*self._attention_open]:
            if digest != reading and self._attention_facts[digest].digest not in here:
                del self._attention_open[digest]

    def _let_go_oldest(self) -> None:
        """Close what was used longest ago, where shards of a remote cache are held in memory."""
        if self._location.local or self._location.cache is not None:
            return
        held = sum(self._facts[digest].bytes for digest in self._open)
        while held > _MEMORY_BYTES_HELD and len(self._open) > 1:
            digest, _ = self._open.popitem(last=False)
            held -= self._facts[digest].bytes
