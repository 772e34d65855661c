"""Sealing: one manifest that names everything committed, with digests, totals and a root digest.

A seal has a generation; a new one is made when data was added. The root digest is over content
alone (identity, samples, shards), so that two caches with the same records in the same shards have
the same root whoever made them, and when.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cachekd.data.digests import bytes_digest
from cachekd.errors import CorruptCache, UnsealedCache
from cachekd.store.attention_rows import check_query_rows
from cachekd.store.attention_shards import AttentionFacts
from cachekd.store.card import card
from cachekd.store.content import content_of
from cachekd.store.identity import Identity
from cachekd.store.index import KeyIndex
from cachekd.store.io import Location
from cachekd.store.layout import (
    ATTENTION,
    CARD,
    FOLDERS,
    HINT,
    KIND,
    attention_name,
    dump_document,
    index_name,
    manifest_name,
    read_document,
    samples_name,
    shard_name,
)
from cachekd.store.logits_rows import check_rows
from cachekd.store.problems import file_problem
from cachekd.store.samples import SampleTable, collect, read_samples
from cachekd.store.shards import ShardFacts
from cachekd.store.state import CacheState, read_state

_MANIFEST = re.compile(r"manifest-([0-9]{1,9})\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A seal as read back; ``attention`` is keyed by the logits shard of the same documents.

    ``repaired`` names what earlier seals of the cache named and this one had to leave out.
    """

    generation: int
    root: str
    source_id: str
    capture_id: str
    shards: Mapping[str, ShardFacts]
    samples: tuple[str, ...]
    priors: Mapping[str, int]
    index: str
    files: Mapping[str, str]
    totals: Mapping[str, int]
    runs: tuple[Mapping[str, Any], ...]
    attention_id: str | None
    attention: Mapping[str, AttentionFacts]
    repaired: tuple[str, ...]

    def written(self) -> frozenset[str]:
        """Digests of the samples shards whose responses the teacher wrote."""
        return frozenset(name for run in self.runs for name in run.get("written", ()))


def generations(location: Location) -> list[int]:
    """Generations of the seals at a location, ascending."""
    matches = (_MANIFEST.fullmatch(name) for name in location.names())
    return sorted(int(match[1]) for match in matches if match)


def read_manifest(location: Location) -> Manifest | None:
    """The newest seal, or None if the cache was never sealed.

    Raises:
        CorruptCache: the seal does not parse.
    """
    found = generations(location)
    if not found:
        return None
    return load_seal(location, found[-1])


def load_seal(location: Location, generation: int) -> Manifest:
    """The seal of a generation (errors of `read_manifest`)."""
    name = manifest_name(generation)
    document = read_document(location, "manifest", name)
    if document.get("generation") != generation:
        raise CorruptCache(
            f"{location.path(name)}: expected the seal of generation {generation}, found "
            f"{document.get('generation')}; the file was moved"
        )
    try:
        shards = [ShardFacts.from_json(value) for value in document["kinds"][KIND]["shards"]]
        attention = document["kinds"].get(ATTENTION)
        return Manifest(
            generation=generation,
            root=document["root"],
            source_id=document["source_id"],
            capture_id=document["kinds"][KIND]["capture_id"],
            shards={facts.digest: facts for facts in shards},
            samples=tuple(document["samples"]),
            priors=dict(document["priors"]),
            index=document["index"],
            files=dict(document["files"]),
            totals=dict(document["totals"]),
            runs=tuple(dict(run) for run in document["runs"]),
            attention_id=attention["capture_id"] if attention else None,
            attention=_attention(attention["shards"]) if attention else {},
            repaired=tuple(map(str, document.get("repaired", ()))),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptCache(f"{location.path(name)} is no seal: {error!r}") from error


def _attention(shards: list[dict[str, Any]]) -> dict[str, AttentionFacts]:
    """Facts of attention shards by the logits shard that each names."""
    return {
        shard["logits"]: AttentionFacts.from_json(
            {key: value for key, value in shard.items() if key != "logits"}
        )
        for shard in shards
    }


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
    content, index_data = checked_content(location, state, leave_out=leave_out)
    newest = read_manifest(location)
    if newest and newest.root == content["root"] and dict(newest.files) == content["files"]:
        keep_index(location, content["index"], index_data)
        show(location, state.identity, newest)  # a sealer may have been stopped before it did
        return newest
    if newest:
        content |= left_out(newest, content)
    return publish(location, state.identity, content, index_data)


def checked_content(
    location: Location, state: CacheState, *, leave_out: bool
) -> tuple[dict[str, Any], bytes]:
    """Fields of the seal of what a state names, which must fit together, and bytes of the index.

    Raises: those of `seal`.
    """
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
        check_rows(location, state, samples, index)
    check_query_rows(location, state, samples, index)
    return content_of(location, state, samples, index)


def left_out(before: Manifest, content: Mapping[str, Any]) -> dict[str, Any]:
    """The field ``repaired`` of a new seal: files of earlier ones that it does not name.

    A file that was made anew is named again, and so it is gone from the next seal's list.
    """
    named = {*before.repaired, *before.files, *map(samples_name, before.samples)}
    lost = named - {*content["files"], *map(samples_name, content["samples"])}
    return {"repaired": sorted(lost)} if lost else {}


def publish(
    location: Location,
    identity: Identity,
    content: Mapping[str, Any],
    index_data: bytes,
    generation: int | None = None,
) -> Manifest:
    """Write the index, a seal with this content, the hint and the card.

    Args:
        location: the cache.
        identity: of the cache.
        content: fields of the seal.
        index_data: bytes of the index that it names.
        generation: of a damaged seal that this one replaces; else the next free one is taken.
    """
    keep_index(location, content["index"], index_data)
    # What another writer named may not be on the disk yet; a seal must not outlive what it names.
    location.sync(FOLDERS)
    location.sweep(FOLDERS)
    if generation is None:
        _take(location, content)
    else:
        location.replace(manifest_name(generation), seal_data(content, generation))
    sealed = read_manifest(location)
    assert sealed is not None, "there is one at least"
    show(location, identity, sealed)
    return sealed


def keep_index(location: Location, digest: str, data: bytes) -> list[str]:
    """Write the index of a seal, if it is not there or damaged; the file, if it was written."""
    name = index_name(digest)
    if file_problem(location, name, digest=digest) is None:
        return []
    location.keep(name, data, digest)
    return [name]


def show(location: Location, identity: Identity, sealed: Manifest) -> list[str]:
    """Write the hint to the newest seal and the card, where they are not there; which these are."""
    hint = dump_document("hint", {"newest": manifest_name(sealed.generation)})
    lacking = []
    for name, data in ((HINT, hint), (CARD, card(identity, sealed).encode())):
        if not location.exists(name) or location.read(name) != data:
            location.replace(name, data)
            lacking.append(name)
    return lacking


def seal_data(content: Mapping[str, Any], generation: int) -> bytes:
    """Bytes of a seal."""
    return dump_document("manifest", {**content, "generation": generation})


def _take(location: Location, content: Mapping[str, Any]) -> None:
    """Write a seal as the next free generation; another sealer may take one first."""
    generation = 1 + max(generations(location), default=0)
    while True:
        name, data = manifest_name(generation), seal_data(content, generation)
        if location.create(name, data) or location.read(name) == data:
            return
        generation += 1


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
    return collect((samples_table(location, digest), digest in written) for digest in digests)


def samples_table(location: Location, digest: str) -> pa.Table:
    """Rows of a samples shard (errors of `load_samples`)."""
    name = samples_name(digest)
    data = location.map(name)
    if bytes_digest(data) != digest:
        raise CorruptCache(f"{location.path(name)}: its bytes do not have the digest it names")
    return read_samples(location.path(name), data)


def _check_size(location: Location, name: str, expected: int) -> None:
    found = location.size(name)
    if found != expected:
        raise CorruptCache(f"{location.path(name)}: expected {expected} bytes, found {found}")
