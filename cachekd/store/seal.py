"""Sealing: one manifest that names everything committed, with digests, totals and a root digest.

A seal has a generation; a new one is made when data was added. The root digest is over content
alone (identity, samples, shards), so that two caches with the same records in the same shards have
the same root whoever made them, and when.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from cachekd.data import limits
from cachekd.data.alignment import LossMask, trained_rows
from cachekd.data.digests import bytes_digest
from cachekd.errors import CorruptCache, DataError, UnsealedCache
from cachekd.store.attention_rows import check_query_rows
from cachekd.store.card import card
from cachekd.store.content import content_of
from cachekd.store.index import KeyIndex
from cachekd.store.io import Location
from cachekd.store.layout import (
    CARD,
    FOLDERS,
    HINT,
    attention_name,
    dump_document,
    index_name,
    manifest_name,
    samples_name,
    shard_name,
)
from cachekd.store.manifest import Manifest, generations, read_manifest
from cachekd.store.priors import Priors
from cachekd.store.samples import SampleTable, collect, read_samples
from cachekd.store.shards import Groups, Shard
from cachekd.store.state import CacheState, read_state


def seal(location: Location, *, leave_out: bool = False) -> Manifest:
    """Seal what is committed, write the index and the card.

    Args:
        location: the cache.
        leave_out: leave samples without targets (of runs that are not finished) to a later seal;
            else they are an error.

    Returns:
        the newest seal: an old one if nothing has come since.

    Raises:
        UnsealedCache: targets of some samples are not captured yet.
        CorruptCache: a committed file is missing or has another size.
        DataError: only response rows were captured, and not all that the samples train on.
    """
    state = read_state(location)
    index = state.index()
    everything = load_samples(location, state.samples(), state.written())
    samples = captured(everything, index)
    missing = len(everything.ids) - len(samples.ids)
    if missing and not leave_out:
        raise UnsealedCache(
            f"{location.url}: {missing} of {len(everything.ids)} samples have no targets yet. "
            "Run the precompute command again to finish them, then seal"
        )
    for digest, facts in state.shards().items():
        _check_size(location, shard_name(digest), facts.bytes)
    for attention in state.attention().values():
        _check_size(location, attention_name(attention.digest), attention.bytes)
    if state.identity.capture["rows"] != "all":
        _check_rows(location, state, samples, index)
    check_query_rows(location, state, samples, index)
    content, manifest_index = content_of(location, state, samples, index)
    newest = read_manifest(location)
    if newest and newest.root == content["root"] and dict(newest.files) == content["files"]:
        return newest
    location.keep(index_name(content["index"]), manifest_index, content["index"])
    # What another writer named may not be on the disk yet; a seal must not outlive what it names.
    location.sync(FOLDERS)
    location.sweep(FOLDERS)
    _publish(location, content)
    sealed = read_manifest(location)
    assert sealed is not None
    location.replace(CARD, card(state.identity, sealed).encode())
    return sealed


def _check_rows(
    location: Location, state: CacheState, samples: SampleTable, index: KeyIndex
) -> None:
    """Refuse records that lack rows which a sample of their key trains on.

    It happens where equal token ids came with other roles, in runs or caches of their own.
    """
    shards, groups, priors, facts = {}, Groups(), Priors(location), state.shards()
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
        prompt = int(samples.prompt_lengths[i])
        wanted = trained_rows(samples.roles(i), None if prompt < 0 else prompt, LossMask.AUTO)
        lacking += bool((wanted & (np.diff(targets.offsets) == 0)).any())
    if lacking:
        raise DataError(
            f"{location.url}: {lacking} samples train on rows that were not captured: the same "
            "token ids were captured with other roles (--rows response). Capture them into a new "
            "cache, with --rows all"
        )


def _publish(location: Location, content: dict[str, Any]) -> None:
    """Take the next free generation; another sealer may take one first."""
    generation = 1 + max(generations(location), default=0)
    while True:
        name = manifest_name(generation)
        document = dump_document("manifest", {**content, "generation": generation})
        if location.create(name, document) or location.read(name) == document:
            break
        generation += 1
    location.replace(HINT, dump_document("hint", {"newest": name}))


def captured(samples: SampleTable, index: KeyIndex) -> SampleTable:
    """The samples whose targets are there: those that a reader shows."""
    there = index.holds(samples.keys)
    return samples if there.all() else samples.take(np.flatnonzero(there))


def load_samples(
    location: Location, digests: Iterable[str], written: frozenset[str]
) -> SampleTable:
    """Samples of the given shards, in order, each sample id once.

    Args:
        location: the cache.
        digests: names of the shards.
        written: of these, the shards whose responses the teacher wrote.

    Raises:
        CorruptCache: a shard is missing, or its name is not the digest of its bytes.
    """
    return collect((_samples_table(location, digest), digest in written) for digest in digests)


def _samples_table(location: Location, digest: str) -> pa.Table:
    name = samples_name(digest)
    data = location.map(name)
    if bytes_digest(data) != digest:
        raise CorruptCache(f"{location.path(name)}: its bytes do not have the digest it names")
    return read_samples(location.path(name), data, limits.SAMPLES_ROWS)


def _check_size(location: Location, name: str, expected: int) -> None:
    found = location.size(name)
    if found != expected:
        raise CorruptCache(f"{location.path(name)}: expected {expected} bytes, found {found}")
