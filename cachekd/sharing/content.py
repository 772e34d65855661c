"""What a sealed cache consists of, and a part of it: files that travel, by name and digest.

Comes in: a location with a sealed cache. Goes out: a `Content`. Files named by their own digest are
told from documents (plans, commit records) whose digests the seal gives.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.data.digests import bytes_digest
from cachekd.errors import CorruptCache, UnsealedCache
from cachekd.store.attention_shards import AttentionFacts
from cachekd.store.identity import Identity
from cachekd.store.identity_files import read_identity
from cachekd.store.index import KeyIndex, load_index
from cachekd.store.io import Location
from cachekd.store.layout import (
    attention_name,
    index_name,
    manifest_name,
    prior_name,
    read_document,
    samples_name,
    shard_name,
    unit_name,
)
from cachekd.store.manifest import Manifest, read_manifest
from cachekd.store.plan import Plan, load_plan
from cachekd.store.shards import ShardFacts
from cachekd.store.state import UnitRecord, load_unit

Read = Callable[[Mapping[str, str]], Mapping[str, bytes]]
_OWN = ("format", "version", "checksum", "generation", "critical")


@dataclass(frozen=True, slots=True)
class Blob:
    """A file that is named by its digest.

    ``size`` is None where the seal does not tell it; ``over``: it is put in the place of a file.
    """

    digest: str
    size: int | None
    over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A sealed cache, or the part of it that travels.

    Attributes:
        location: where it is.
        identity: its teacher and capture.
        manifest: its seal.
        blobs: files named by their digest: shards, samples, priors.
        documents: plans and commit records, with their sha256.
        part: what was chosen of it, or None where all of it travels.
    """

    location: Location
    identity: Identity
    manifest: Manifest
    blobs: Mapping[str, Blob]
    documents: Mapping[str, str]
    part: Mapping[str, Any] | None = None

    def origin(self) -> dict[str, Any]:
        """Which cache this is, as a seal tells of it; of a folder here only its own name."""
        place = self.location.url
        shown = posixpath.basename(place.rstrip("/")) if self.location.local else place
        return {"root": self.manifest.root, "cache": shown}

    def identity_files(self) -> dict[str, str]:
        """The files that say whose the cache is, with their sha256."""
        files = self.manifest.files
        return {name: digest for name, digest in files.items() if not _is_document(name)}

    def index_bytes(self) -> bytes:
        """Bytes of the index.

        Raises:
            CorruptCache: it is missing or altered.
        """
        name = index_name(self.manifest.index)
        data = self.location.read(name)
        if bytes_digest(data) != self.manifest.index:
            raise CorruptCache(f"{self.location.path(name)}: the file was altered")
        return data

    def index(self) -> KeyIndex:
        """Where each key is (errors of `index_bytes`)."""
        return load_index(index_name(self.manifest.index), self.index_bytes())

    def fields(self) -> dict[str, Any]:
        """Fields of the seal, as they are written, without its generation."""
        name = manifest_name(self.manifest.generation)
        document = read_document(self.location, "manifest", name)
        return {key: value for key, value in document.items() if key not in _OWN}


def sealed_content(location: Location) -> Content:
    """All that the newest seal of a cache names.

    Raises:
        CacheNotFound: there is no cache.
        UnsealedCache: it has no seal.
        CorruptCache: the seal cannot be read, or is of another identity.
    """
    identity = read_identity(location)
    manifest = read_manifest(location)
    if manifest is None:
        raise UnsealedCache(
            f"{location.url} is not sealed: only a sealed cache is shared. Finish its precompute "
            "command, or run cachekd seal"
        )
    ids = (identity.source_id, identity.capture_id, identity.attention_id)
    if (manifest.source_id, manifest.capture_id, manifest.attention_id) != ids:
        raise CorruptCache(f"{location.url}: the seal is of another identity than cache.json")
    return Content(
        location=location,
        identity=identity,
        manifest=manifest,
        blobs={
            **shard_blobs(manifest.shards.values(), manifest.attention.values()),
            **{samples_name(digest): Blob(digest, None) for digest in manifest.samples},
            **{prior_name(digest): Blob(digest, size) for digest, size in manifest.priors.items()},
        },
        documents={name: own for name, own in manifest.files.items() if _is_document(name)},
    )


def shard_blobs(
    shards: Iterable[ShardFacts], attention: Iterable[AttentionFacts]
) -> dict[str, Blob]:
    """Files of shards of both kinds."""
    logits = {shard_name(facts.digest): Blob(facts.digest, facts.bytes) for facts in shards}
    beside = {attention_name(own.digest): Blob(own.digest, own.bytes) for own in attention}
    return {**logits, **beside}


def part_of(
    content: Content,
    shards: Collection[str],
    part: Mapping[str, Any],
    read: Read,
) -> Content:
    """The part of a cache that these shards of logits are, with all plans, samples and priors.

    Args:
        content: of the cache.
        shards: digests of the shards.
        part: how they were chosen, for the seal.
        read: reads documents by name and digest, many at once.
    """
    kept = _records_of(content, shards, read)
    manifest = content.manifest
    chosen = [manifest.shards[digest] for digest in sorted(shards)]
    return replace(
        content,
        blobs={
            **shard_blobs(chosen, attention_of(kept.values())),
            **{samples_name(digest): Blob(digest, None) for digest in manifest.samples},
            **{prior_name(digest): Blob(digest, size) for digest, size in manifest.priors.items()},
        },
        documents={
            name: own
            for name, own in content.documents.items()
            if name in kept or name.startswith("plans/")
        },
        part=part,
    )


def _records_of(content: Content, shards: Collection[str], read: Read) -> dict[str, UnitRecord]:
    """Commit records that name these shards, by file.

    Keys of a shard are those of its units, so that plans and index tell which records to read; of
    shards from which no key is read all are looked at.
    """
    plans = {name: own for name, own in content.documents.items() if name.startswith("plans/")}
    units = {name: own for name, own in content.documents.items() if name.startswith("units/")}
    index = content.index()
    chosen = np.array([digest in shards for digest in index.shards], np.bool_)
    likely = {
        name
        for path, data in read(plans).items()
        for name in _units_in(load_plan(path, data), path, index, chosen)
    }
    kept: dict[str, UnitRecord] = {}
    for names in (units.keys() & likely, units.keys() - likely):
        if {record.shard.digest for record in kept.values()} != set(shards):
            found = read({name: units[name] for name in sorted(names)})
            records = {name: load_unit(name, data) for name, data in found.items()}
            kept |= {name: own for name, own in records.items() if own.shard.digest in shards}
    return dict(sorted(kept.items()))


def _units_in(plan: Plan, path: str, index: KeyIndex, chosen: NDArray[np.bool_]) -> Iterator[str]:
    """Commit records of a plan's units of which any key is read from a chosen shard."""
    digest = path.partition("/")[2].removesuffix(".json")
    for number in range(len(plan.units)):
        keys = plan.packed_keys(number)
        there = keys.take(np.flatnonzero(index.holds(keys)))
        if chosen[index.shards_of(there)].any():
            yield unit_name(digest, number)


def attention_of(records: Iterable[UnitRecord]) -> list[AttentionFacts]:
    """Shards of attention that commit records name, each once."""
    found = {own.attention.digest: own.attention for own in records if own.attention}
    return list(found.values())


def _is_document(name: str) -> bool:
    return name.startswith(("plans/", "units/"))
