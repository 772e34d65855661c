"""Reading a cache: open, count, look up, get a record. numpy only; no torch.

A sealed cache is read as its newest seal says, whatever was added since; an unsealed one only on
request, as far as it is committed. Every shard is checked in whole when it is first used.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cachekd.data.digests import sample_key
from cachekd.data.packed import Places
from cachekd.errors import CorruptCache, UnsealedCache
from cachekd.store.attention_shards import AttentionFacts
from cachekd.store.content import totals
from cachekd.store.identity import Identity
from cachekd.store.identity_files import read_identity
from cachekd.store.index import KeyIndex, load_index
from cachekd.store.io import Location
from cachekd.store.layout import attention_name, index_name, shard_name
from cachekd.store.manifest import Manifest, read_manifest
from cachekd.store.open_shards import OpenShards
from cachekd.store.samples import SampleTable
from cachekd.store.seal import captured, load_samples
from cachekd.store.settings import settings
from cachekd.store.shards import Shard, ShardFacts
from cachekd.store.skipped import Skipped, in_force, marked
from cachekd.store.state import read_state
from cachekd.store.texts import Texts, with_text
from cachekd.types import AttentionRows, Float32, Int32, Int64, Record, Role, TopKLogits, UInt8

_REPAIRED = "%s was repaired: %d files that it had are left out; precompute makes them anew"
_log = logging.getLogger(__name__)


class Cache:
    """Samples with the teacher's targets, by number or by token ids.

    Attributes:
        name: how messages and run records call it.
        url: where it is.
        identity: who the teacher is and what was captured.
        root: root digest of the seal, or None for an unsealed cache.
        totals: counts (samples, keys, tokens, targets, entries, bytes).
        lengths: tokens of each sample, int32.
        written: whether the teacher wrote the response of each sample, bool.
        sample_ids: content id of each sample.
        texts: where token ids are read that the cache was shared without; set by who has them.
        decodes_attention: whether records come with their attention.
        skipped: rows by key that the teacher gave no distribution of.
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
        attention: Mapping[str, AttentionFacts],
        skipped: Mapping[str, Skipped],
    ) -> None:
        self.name = name
        self.url = location.url
        self.identity = identity
        self.manifest = manifest
        self.root = manifest.root if manifest else None
        self.totals = (
            dict(manifest.totals)
            if manifest
            else totals(shards, samples, index, attention, skipped)
        )
        self.skipped = in_force(skipped, index)
        self.lengths = samples.lengths
        self.sample_ids = samples.ids
        self.domains = samples.domains
        self.written = samples.written
        self._location = location
        self._samples = samples
        self._index = index
        self._facts = dict(shards)
        self.decodes_attention = bool(attention)
        self._shards = OpenShards(location, identity, self._facts, dict(attention))
        self._by_key: Places | None = None
        self.texts: Texts | None = None

    @property
    def sealed(self) -> bool:
        """Whether this is a sealed cache."""
        return self.root is not None

    @property
    def samples(self) -> SampleTable:
        """All samples, without their tokens and targets."""
        return self._samples

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
        places = [self._place(self._samples.keys[i], i) for i in numbers]
        by_shard: dict[int, list[int]] = {}
        for at, (number, _) in enumerate(places):
            by_shard.setdefault(number, []).append(at)
        found: dict[int, Record] = {}
        for number, own in by_shard.items():
            stored = self._shard(number).records([places[at][1] for at in own])
            for at, one in zip(own, stored, strict=True):
                found[at] = self._record(numbers[at], places[at], one)
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
            self._by_key = Places(self._samples.keys)
        found, place = self._by_key.all_of(key), self._place(key, None)
        stored = self._shard(place[0]).record(place[1])
        given = (stored[0], np.asarray(input_ids, np.int32), stored[2])
        return self._record(int(found[0]) if len(found) else None, place, given)

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
        total = sum(n * self._shards.priors.get(prior).unigram() for prior, n in weights.items())
        return np.asarray(total / weights.total(), np.float32)

    def roles(self, i: int) -> tuple[UInt8, int | None]:
        """Role of each token of sample i, uint8 [L], and its prompt length; reads no shard."""
        prompt = int(self._samples.prompt_lengths[i])
        return self._samples.roles(i), None if prompt < 0 else prompt

    def shards_of(self, numbers: Int32) -> tuple[list[str], Int64]:
        """Digests of all shards, and which of them holds the targets of each of these samples."""
        return self._index.shards, self._index.shards_of(self._samples.keys.take(numbers))

    @property
    def held_bytes(self) -> int:
        """Bytes that the local cache may hold of this cache and others; 0 for a local one."""
        return self._location.cache.limit if self._location.cache else 0

    def bytes_of(self, digest: str) -> int:
        """Bytes of a shard of logits, with its shard of attention where that is decoded."""
        beside = self._shards.beside(digest) if self.decodes_attention else None
        return self._facts[digest].bytes + (beside.bytes if beside else 0)

    def fetch(self, digest: str) -> None:
        """Bring a shard of logits, and its shard of attention where that is decoded, here.

        Raises:
            StoreError: it cannot be had.
        """
        self._location.checked(shard_name(digest), digest, self._facts[digest].bytes)
        beside = self._shards.beside(digest) if self.decodes_attention else None
        if beside is not None:
            self._location.checked(attention_name(beside.digest), beside.digest, beside.bytes)

    def _place(self, key: bytes, i: int | None) -> tuple[int, int]:
        place = self._index.find(key)
        if place is None:
            raise CorruptCache(f"{self.url}: the index has no place for sample {i}")
        return place

    def _record(
        self, i: int | None, place: tuple[int, int], found: tuple[bytes, Int32, TopKLogits]
    ) -> Record:
        """Sample i, or a document that no sample names, with the record found at its place."""
        key, input_ids, logits = found
        input_ids = with_text(self.url, key, input_ids, self.texts)
        roles, prompt_length = np.full(len(input_ids), Role.TEXT, dtype=np.uint8), None
        if i is not None:
            roles, prompt_length = self.roles(i)
        if len(roles) != len(input_ids) or (i is not None and key != self._samples.keys[i]):
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
            attention=self._attention_rows(place, input_ids) if self.decodes_attention else None,
            skipped=marked(self.skipped.get(key), logits.rows),
        )

    def _attention_rows(self, place: tuple[int, int], input_ids: Int32) -> AttentionRows:
        """Attention of a document: in the same row as its logits, of the shard beside theirs."""
        digest = self._index.shards[place[0]]
        return self._shards.attention(digest).record(place[1], input_ids)

    def _shard(self, number: int) -> Shard:
        return self._shards.logits(self._index.shards[number])


def open_cache(
    url: str,
    *,
    partial: bool = False,
    name: str | None = None,
    attention: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> Cache:
    """Open a cache for reading.

    Args:
        url: folder or fsspec URL.
        partial: accept a cache without seal (or newer than its seal), as far as it is committed.
        name: what messages call it; default the URL.
        attention: decode attention, where there is any, with each record.
        storage_options: of the filesystem, as `datasets.load_from_disk` takes them; default:
            those of ``CACHEKD_STORAGE_OPTIONS``.

    Raises:
        CacheNotFound: there is none.
        UnsealedCache: it has no seal and ``partial`` is off.
        CorruptCache: a file is missing or altered; names it.
    """
    given = None if storage_options is None else replace(settings(), options=storage_options)
    location = Location(url, given=given)
    cache = _open_partial(location, name or url) if partial else _open_sealed(location, name or url)
    cache.decodes_attention &= attention
    return cache


def _open_sealed(location: Location, name: str) -> Cache:
    url, identity = location.url, read_identity(location)
    manifest = read_manifest(location)
    if manifest is None:
        imported = "asserted" in identity.source
        what, command = ("import", "import") if imported else ("capture", "precompute")
        raise UnsealedCache(
            f"{url} is not sealed: its {what} is not finished. Run the {command} command again "
            "to finish it, or pass --partial to use what is there"
        )
    if manifest.repaired:
        _log.warning(_REPAIRED, url, len(manifest.repaired))
    ids = (identity.source_id, identity.capture_id, identity.attention_id)
    if (manifest.source_id, manifest.capture_id, manifest.attention_id) != ids:
        raise CorruptCache(f"{url}: the seal is of another identity than cache.json")
    data = location.checked(index_name(manifest.index), manifest.index)
    index = load_index(index_name(manifest.index), memoryview(data))
    samples = captured(load_samples(location, manifest.samples, manifest.written()), index)
    if len(samples.ids) != manifest.totals.get("samples"):
        raise CorruptCache(
            f"{url}: the seal counts {manifest.totals.get('samples')} samples with targets; "
            f"{len(samples.ids)} are found"
        )
    shards, attention, skipped = manifest.shards, manifest.attention, manifest.skipped
    return Cache(location, name, identity, samples, index, shards, manifest, attention, skipped)


def _open_partial(location: Location, name: str) -> Cache:
    state = read_state(location)
    index = state.index()
    samples = captured(load_samples(location, state.samples(), state.written()), index)
    facts = (state.shards(), None, state.attention(), state.skipped())
    return Cache(location, name, state.identity, samples, index, *facts)
