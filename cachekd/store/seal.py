"""Sealing: one manifest that names everything committed, with digests, totals and a root digest.

A seal has a generation; a new one is made when data was added. The root digest is over content
alone (identity, samples, shards), so that two caches with the same records in the same shards have
the same root whoever made them, and when.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from cachekd.data import limits
from cachekd.errors import CorruptCache, StoreError, UnsealedCache
from cachekd.store.attention_rows import check_query_rows
from cachekd.store.card import card
from cachekd.store.claims import Claims
from cachekd.store.collected import collect
from cachekd.store.content import content_of
from cachekd.store.identity import Identity
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
from cachekd.store.logits_rows import check_rows
from cachekd.store.manifest import (
    MOST_GENERATIONS,
    Manifest,
    generations,
    load_seal,
    read_manifest,
)
from cachekd.store.problems import file_problem
from cachekd.store.samples import SampleTable, read_samples
from cachekd.store.state import CacheState, read_state


def seal(
    location: Location, *, leave_out: bool = False, origin: Mapping[str, Any] | None = None
) -> Manifest:
    """Seal what is committed, write the index and the card.

    Args:
        location: the cache.
        leave_out: leave samples without targets (of runs that are not finished) to a later seal;
            else they are an error.
        origin: a cache that records were taken from, and which; the seal tells of it.

    Returns:
        the newest seal: an old one if nothing has come since.

    Raises:
        UnsealedCache: targets of some samples are not captured yet.
        CorruptCache: a committed file is missing or has another size.
        DataError: only response rows were captured, and not all that the samples train on.
    """
    # One at a time: a newer seal must not tell of an older state.
    with Claims(location, "seal") as claims:
        claims.wait(0)
        while True:
            # Looked at before the state: what a seal names that comes later was committed before.
            last = newest_generation(location)
            state = read_state(location)
            content, index_data = checked_content(location, state, leave_out=leave_out)
            content |= {"origins": [dict(origin)]} if origin else {}
            sealed = publish(location, state.identity, content, index_data, after=last)
            if sealed is not None:
                return sealed


def checked_content(
    location: Location, state: CacheState, *, leave_out: bool
) -> tuple[dict[str, Any], bytes]:
    """Fields of the seal of what a state names, which must fit together, and bytes of the index.

    Raises: those of `seal`.
    """
    index = state.index().spilled()
    everything = load_samples(location, state.samples(), state.written())
    samples = captured(everything, index)
    missing = len(everything.ids) - len(samples.ids)
    if missing and not leave_out:
        raise UnsealedCache(
            f"{location.url}: {missing} of {len(everything.ids)} samples have no targets yet. "
            "Run the precompute command again to finish them, then seal"
        )
    sizes = {shard_name(digest): facts.bytes for digest, facts in state.shards().items()}
    sizes |= {attention_name(own.digest): own.bytes for own in state.attention().values()}
    _check_sizes(location, sizes)
    if state.identity.capture["rows"] != "all":
        check_rows(location, state, samples, index)
    check_query_rows(location, state, samples, index)
    return content_of(location, state, samples, index)


def left_out(
    before: Manifest, content: Mapping[str, Any], replaced: Collection[str] = ()
) -> dict[str, Any]:
    """The field ``repaired`` of a new seal: files of earlier ones that it does not name.

    A file that was made anew is named again, and so it is gone from the next seal's list; one that
    was replaced by others was never lost.
    """
    named = {*before.repaired, *before.files, *map(samples_name, before.samples)}
    lost = named - {*content["files"], *map(samples_name, content["samples"]), *replaced}
    return {"repaired": sorted(lost)} if lost else {}


def origins(before: Manifest, content: Mapping[str, Any]) -> dict[str, Any]:
    """The field ``origins`` of a new seal: caches that its records were taken from, each once.

    Of one that was taken from twice, the last time is told.
    """
    known = {origin["root"]: origin for origin in (*before.origins, *content.get("origins", ()))}
    return {"origins": list(known.values())} if known else {}


def publish(
    location: Location,
    identity: Identity,
    content: Mapping[str, Any],
    index_data: bytes,
    *,
    after: int,
    generation: int | None = None,
    replaced: Collection[str] = (),
) -> Manifest | None:
    """Write the index, a seal with this content unless the newest has it, the hint and the card.

    Args:
        location: the cache.
        identity: of the cache.
        content: fields of the seal.
        index_data: bytes of the index that it names.
        after: generation of the newest seal when the content was looked at, 0 if there was none.
        generation: of a damaged seal that this one replaces; else the next one is taken.
        replaced: files of the newest seal that others stand for in this one.

    Returns:
        the newest seal, or None if another writer has sealed since: then nothing is sealed, and
        what is committed has to be looked at again.
    """
    keep_index(location, content["index"], index_data)
    # What another writer named may not be on the disk yet; a seal must not outlive what it names.
    location.sync(FOLDERS)
    location.sweep(FOLDERS)
    if generation is not None:
        location.replace(manifest_name(generation), seal_data(content, generation))
    elif not _take(location, content, after, replaced):
        return None
    sealed = read_manifest(location)
    assert sealed is not None, "there is one at least"
    show(location, identity, sealed)
    return sealed


def newest_generation(location: Location) -> int:
    """Generation of the newest seal, or 0."""
    return max(generations(location), default=0)


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
        if not location.holds(name, data):
            location.replace(name, data)
            lacking.append(name)
    return lacking


def seal_data(content: Mapping[str, Any], generation: int) -> bytes:
    """Bytes of a seal."""
    return dump_document("manifest", {**content, "generation": generation})


def _take(
    location: Location, content: Mapping[str, Any], after: int, replaced: Collection[str]
) -> bool:
    """Write the seal that follows one, unless that says the same; False if another was first."""
    if newest_generation(location) != after:
        return False
    before = load_seal(location, after) if after else None
    if before is not None:
        if before.root == content["root"] and dict(before.files) == content["files"]:
            return True
        if after >= MOST_GENERATIONS:
            raise StoreError(
                f"{location.path(manifest_name(after))}: there is no higher generation; the file "
                "was put there. Take it away, then seal again"
            )
        content = {**left_out(before, content, replaced), **content, **origins(before, content)}
    return location.create(manifest_name(after + 1), seal_data(content, after + 1))


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
    tables = ((samples_table(location, digest), digest in written) for digest in digests)
    return collect(tables, on_disk=True)


def samples_table(location: Location, digest: str) -> pa.Table:
    """Rows of a samples shard (errors of `load_samples`)."""
    name = samples_name(digest)
    data = location.checked(name, digest)
    return read_samples(location.path(name), data, limits.SAMPLES_ROWS)


def _check_sizes(location: Location, sizes: Mapping[str, int]) -> None:
    """Refuse files that are not there or have another size; each folder is listed once."""
    folders = {name.partition("/")[0] for name in sizes}
    listed = {folder: location.entries(folder) for folder in folders}
    for name, expected in sizes.items():
        folder, _, base = name.partition("/")
        if base in listed[folder] and listed[folder][base].size == expected:
            continue
        found = location.size(name)  # tells what is there instead
        if found != expected:
            raise CorruptCache(f"{location.path(name)}: expected {expected} bytes, found {found}")
