"""The open shards of a cache that is read, each checked in whole when it is opened.

Comes in: the facts of the shards, by digest. Goes out: `Shard` and `AttentionShard`. Those of a
local cache stay open; of a remote one, those whose file the local cache still holds, so that no
disk is used for what was taken away.
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
            self._let_go()
        self._open.move_to_end(digest)
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
            self._let_go()
        return self._attention_open[digest]

    def beside(self, digest: str) -> AttentionFacts | None:
        """Facts of the shard of attention that goes with a shard of logits, if one does."""
        return self._attention_facts.get(digest)

    def _let_go(self) -> None:
        """Close what the local cache no longer holds, but the newest."""
        if self._location.cache is not None:
            here = self._location.cache.holds
            for digest in [*self._open][:-1]:
                if not here(digest):
                    del self._open[digest]
            for digest in [*self._attention_open][:-1]:
                if not here(self._attention_facts[digest].digest):
                    del self._attention_open[digest]
        elif not self._location.local:
            held = sum(self._facts[digest].bytes for digest in self._open)
            while held > _MEMORY_BYTES_HELD and len(self._open) > 1:
                digest, _ = self._open.popitem(last=False)
                held -= self._facts[digest].bytes
