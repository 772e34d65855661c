"""Reading a cache: open, count, look up, get a record. numpy only; no torch.

A sealed cache is read as its newest seal says, whatever was added since; an unsealed one only on
request, as far as it is committed. Every shard is checked in whole when it is first used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cachekd.data.digests import bytes_digest, sample_key
from cachekd.errors import CorruptCache, UnsealedCache
from cachekd.store.identity import Identity
from cachekd.store.index import KeyIndex, load_index
from cachekd.store.io import Location
from cachekd.store.layout import index_name
from cachekd.store.priors import Priors
from cachekd.store.samples import SampleTable
from cachekd.store.seal import Manifest, captured, load_samples, read_manifest, totals
from cachekd.store.shards import Groups, Shard, ShardFacts
from cachekd.store.state import read_identity, read_state
from cachekd.types import Float32, Int32, Record, Role, TopKLogits, UInt8


class Cache:
    """Samples with the teacher's targets, by number or by token ids.

    Attributes:
        name: how messages and run records call it.
        url: where it is.
        identity: who the teacher is and what was captured.
        root: root digest of the seal, or None for an unsealed cache.
        totals: counts (samples, keys, tokens, targets, entries, bytes).
        lengths: tokens of each sample, int32.
        sample_ids: content id of each sample.
    """

    def __init__(
        self,
        location: Location,
        name: str,
        identity: Identity,
        samples: SampleTable,
        index: KeyIndex,
        shards: Mapping[str, ShardFacts],
        manifest: Manifest | None,
    ) -> None:
        self.name = name
        self.url = location.url
        self.identity = identity
        self.manifest = manifest
        self.root = manifest.root if manifest else None
        self.totals = dict(manifest.totals) if manifest else totals(shards, samples, index)
        self.lengths = samples.lengths
        self.sample_ids = samples.ids
        self.domains = samples.domains
        self._location = location
        self._samples = samples
        self._index = index
        self._facts = dict(shards)
        self._open: dict[int, Shard] = {}
        self._groups = Groups()
        self._priors = Priors(location)
        self._by_key: dict[bytes, int] | None = None

    @property
    def sealed(self) -> bool:
        """Whether this is a sealed cache."""
        return self.root is not None

    def __len__(self) -> int:
        return len(self._samples.ids)

    def __getitem__(self, i: int) -> Record:
        """Sample i in plan order.

        Raises:
            IndexError: there is no such sample.
            CorruptCache: its shard is missing or altered; names the file.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples; asked for number {i}")
        return self.read([i % len(self)])[0]

    def read(self, numbers: Sequence[int]) -> list[Record]:
        """Samples of these numbers (from 0), in this order; cheaper than one by one.

        Raises:
            CorruptCache: a shard is missing or altered; names the file.
        """
        by_shard: dict[int, list[tuple[int, int]]] = {}
        for at, i in enumerate(numbers):
            number, row = self._place(self._samples.keys[i], i)
            by_shard.setdefault(number, []).append((at, row))
        found: dict[int, Record] = {}
        for number, places in by_shard.items():
            stored = self._shard(number).records([row for _, row in places])
            for (at, _), one in zip(places, stored, strict=True):
                i = numbers[at]
                found[at] = self._record(self._samples.keys[i], i, *self.roles(i), one)
        return [found[at] for at in range(len(numbers))]

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def get(self, input_ids: Int32) -> Record:
        """The record of exactly these token ids.

        Raises:
            KeyError: the cache has no targets for them.
        """
        key = sample_key(np.asarray(input_ids))
        if self._index.find(key) is None:
            raise KeyError(f"{self.name} has no targets for these {len(input_ids)} token ids")
        if self._by_key is None:
            self._by_key = {k: i for i, k in reversed(list(enumerate(self._samples.keys)))}
        if key in self._by_key:
            return self[self._by_key[key]]
        number, row = self._place(key, None)
        roles = np.full(len(input_ids), Role.TEXT, dtype=np.uint8)
        return self._record(key, None, roles, None, self._shard(number).record(row))

    def unigram(self) -> Float32 | None:
        """The teacher's mean distribution, float32 [V], as the priors of the cache tell it.

        The mean over the priors, each counted with the targets that it packs; None without any.
        """
        weights: Counter[str] = Counter()
        for facts in self._facts.values():
            if facts.prior:
                weights[facts.prior] += facts.tokens - facts.rows
        if not weights:
            return None
        total = sum(n * self._priors.get(prior).unigram() for prior, n in weights.items())
        return np.asarray(total / weights.total(), np.float32)

    def roles(self, i: int) -> tuple[UInt8, int | None]:
        """Role of each token of sample i, uint8 [L], and its prompt length; reads no shard."""
        prompt = int(self._samples.prompt_lengths[i])
        return self._samples.roles(i), None if prompt < 0 else prompt

    def _place(self, key: bytes, i: int | None) -> tuple[int, int]:
        place = self._index.find(key)
        if place is None:
            raise CorruptCache(f"{self.url}: the index has no place for sample {i}")
        return place

    def _record(
        self,
        key: bytes,
        i: int | None,
        roles: UInt8,
        prompt_length: int | None,
        found: tuple[bytes, Int32, TopKLogits],
    ) -> Record:
        stored, input_ids, logits = found
        if stored != key or len(roles) != len(input_ids):
            raise CorruptCache(f"{self.url}: sample {i} points to the record of other token ids")
        return Record(
            key=key,
            sample_id=b"" if i is None else self._samples.ids[i],
            input_ids=input_ids,
            roles=roles,
            prompt_length=prompt_length,
            domain="" if i is None else self._samples.domains[i],
            weight=1.0 if i is None else float(self._samples.weights[i]),
            logits=logits,
        )

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            digest = self._index.shards[number]
            if digest not in self._facts:
                raise CorruptCache(f"{self.url}: the index names shard {digest}, the seal does not")
            facts = self._facts[digest]
            self._open[number] = Shard(
                self._location, facts, self.identity.capture_id, self._groups, self._priors
            )
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        # A worker process opens shards of its own.
        own = {"_open": {}, "_groups": Groups(), "_priors": Priors(self._location)}
        return {**self.__dict__, **own}


def open_cache(url: str, *, partial: bool = False, name: str | None = None) -> Cache:
    """Open a cache for reading.

    Args:
        url: folder or fsspec URL.
        partial: accept a cache without seal (or newer than its seal), as far as it is committed.
        name: what messages call it; default the URL.

    Raises:
        CacheNotFound: there is none.
        UnsealedCache: it has no seal and ``partial`` is off.
        CorruptCache: a file is missing or altered; names it.
    """
    location = Location(url)
    identity = read_identity(location)
    if partial:
        return _open_partial(location, name or url)
    manifest = read_manifest(location)
    if manifest is None:
        raise UnsealedCache(
            f"{url} is not sealed: its capture is not finished. Run the precompute command again "
            "to finish it, or pass --partial to use what is there"
        )
    if (manifest.source_id, manifest.capture_id) != (identity.source_id, identity.capture_id):
        raise CorruptCache(f"{url}: the seal is of another identity than cache.json")
    data = location.read(index_name(manifest.index))
    if bytes_digest(data) != manifest.index:
        raise CorruptCache(f"{location.path(index_name(manifest.index))}: the file was altered")
    index = load_index(index_name(manifest.index), data)
    samples = captured(load_samples(location, manifest.samples), index)
    if len(samples.ids) != manifest.totals.get("samples"):
        raise CorruptCache(
            f"{url}: the seal counts {manifest.totals.get('samples')} samples with targets; "
            f"{len(samples.ids)} are found"
        )
    return Cache(location, name or url, identity, samples, index, manifest.shards, manifest)


def _open_partial(location: Location, name: str) -> Cache:
    state = read_state(location)
    index = state.index()
    samples = captured(load_samples(location, state.samples()), index)
    return Cache(location, name, state.identity, samples, index, state.shards(), None)
