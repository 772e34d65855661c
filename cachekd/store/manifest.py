"""A seal as it is read back: all that it names, with every field checked.

Comes in: the newest ``manifest-<g>.json`` of a cache. Goes out: a `Manifest`. Nothing that a seal
says becomes a file name before it was found to be a digest, or a name that a seal may give.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cachekd.data import limits, strict
from cachekd.errors import CorruptCache, StoreError
from cachekd.store.attention_shards import AttentionFacts
from cachekd.store.io import Location
from cachekd.store.layout import (
    ATTENTION,
    HINT,
    KIND,
    load_document,
    manifest_name,
    most_bytes,
    read_document,
    sealed_name,
)
from cachekd.store.names import check_name
from cachekd.store.retries import status_of
from cachekd.store.shards import ShardFacts
from cachekd.store.skipped import FIELD, Skipped, parse
from cachekd.store.texts import lacks_text

_MANIFEST = re.compile(r"manifest-([1-9][0-9]{0,8})\.json")
_REFUSED = 403
MOST_GENERATIONS = 10**9 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A seal as read back; ``attention`` is keyed by the logits shard of the same documents.

    ``repaired`` names what earlier seals of the cache named and this one had to leave out;
    ``skipped``: by shard the rows that the teacher gave no distribution of; ``origins``: caches
    that records were taken from, each with its root digest and what was taken.
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
    skipped: Mapping[str, Skipped]
    origins: tuple[Mapping[str, Any], ...]

    def written(self) -> frozenset[str]:
        """Digests of the samples shards whose responses the teacher wrote."""
        return frozenset(name for run in self.runs for name in run.get("written", ()))

    def lacks_text(self) -> bool:
        """Whether records were shared without the text of their samples."""
        return lacks_text(run.get("changed", {}) for run in self.runs)


def generations(location: Location) -> list[int]:
    """Generations of the seals at a location, ascending."""
    if not location.lists:
        newest = _newest(location) or 0
        return [g for g in range(1, newest + 1) if _is_there(location, manifest_name(g))]
    found = map(generation_of, location.names())
    return sorted(generation for generation in found if generation is not None)


def _newest(location: Location) -> int | None:
    """The newest generation, found by the hint and the names that follow; None without a hint.

    The hint may be that of an older seal: who wrote the next one may have died before it.
    """
    generation = hinted_generation(location)
    if generation is None or not location.exists(manifest_name(generation)):
        return None
    while _is_there(location, manifest_name(generation + 1)):
        generation += 1
    return generation


def _is_there(location: Location, name: str) -> bool:
    """Whether there is a seal beside one that was found.

    Who may read a place and not list it is refused what is not there: S3 without s3:ListBucket,
    and some servers of plain HTTP.
    """
    try:
        return location.exists(name)
    except StoreError as error:
        if status_of(error) != _REFUSED:
            raise
        return False


def hinted_generation(location: Location) -> int | None:
    """The generation that the hint names, if there is a hint that was not altered."""
    try:
        newest = str(read_document(location, "hint", HINT).get("newest"))
    except StoreError as error:  # a hint is not trusted, and not needed where files are listed
        if not (location.lists or isinstance(error, CorruptCache)):
            raise
        return None
    return generation_of(newest)


def generation_of(name: str) -> int | None:
    """The generation of a seal by its file's name, or None if it is no seal's."""
    match = _MANIFEST.fullmatch(name)
    return int(match[1]) if match else None


def read_manifest(location: Location) -> Manifest | None:
    """The newest seal, or None if the cache was never sealed.

    Raises:
        CorruptCache: the seal does not parse, or names what no seal names.
    """
    newest = None if location.local else _newest(location)
    if newest is None:
        newest = max(generations(location), default=None)
    return None if newest is None else load_seal(location, newest)


def load_seal(location: Location, generation: int) -> Manifest:
    """The seal of a generation (errors of `read_manifest`)."""
    name = manifest_name(generation)
    return load_manifest(
        location.path(name), location.read(name, most_bytes("manifest")), generation
    )


def load_manifest(name: str, data: bytes, generation: int) -> Manifest:
    """Parse a seal of this generation (errors of `read_manifest`)."""
    try:
        document = load_document("manifest", name, data)
    except CorruptCache as error:
        raise CorruptCache(f"{error}. cachekd verify --repair writes a seal again") from error
    try:
        return _manifest(document, generation)
    except (CorruptCache, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptCache(f"{name} is no seal: {error!r:.300}") from error


def _manifest(document: Mapping[str, Any], generation: int) -> Manifest:
    stated = strict.whole(document["generation"], MOST_GENERATIONS, 1)
    if stated != generation:
        raise ValueError(f"it is of generation {stated}; the file was moved")
    logits, attention = document["kinds"][KIND], document["kinds"].get(ATTENTION)
    shards = strict.listed(logits["shards"], limits.SHARDS, ShardFacts.from_json)
    strict.distinct(facts.digest for facts in shards)
    return Manifest(
        generation=generation,
        root=strict.short_id(document["root"]),
        source_id=strict.short_id(document["source_id"]),
        capture_id=strict.short_id(logits["capture_id"]),
        shards={facts.digest: facts for facts in shards},
        samples=strict.distinct(strict.listed(document["samples"], limits.SHARDS, strict.digest)),
        priors={
            strict.digest(digest): size
            for digest, size in strict.counts(document["priors"]).items()
        },
        index=strict.digest(document["index"]),
        files={
            sealed_name(name): strict.digest(digest)
            for name, digest in strict.fields(document["files"]).items()
        },
        totals=strict.counts(document["totals"]),
        runs=strict.listed(document["runs"], limits.RUNS, _run),
        attention_id=strict.short_id(attention["capture_id"]) if attention else None,
        attention=_attention(attention["shards"]) if attention else {},
        repaired=strict.listed(document.get("repaired", []), limits.SHARDS, _named),
        skipped={
            strict.digest(shard): parse(rows)
            for shard, rows in strict.fields(document.get(FIELD, {})).items()
        },
        origins=strict.listed(document.get("origins", []), limits.RUNS, _origin),
    )


def _named(value: Any) -> str:
    return check_name(strict.text(value))


def _origin(value: Any) -> dict[str, Any]:
    origin = strict.fields(value)
    strict.short_id(origin["root"])
    return origin


def _run(value: Any) -> dict[str, Any]:
    run = strict.fields(value)
    strict.digest(run["plan"])
    for name in ("skipped", "changed"):
        strict.counts(run[name])
    if "written" in run:
        strict.listed(run["written"], limits.SHARDS, strict.digest)
        strict.fields(run["responses"])
    return run


def _attention(value: Any) -> dict[str, AttentionFacts]:
    """Facts of attention shards by the logits shard that each names."""
    pairs = strict.listed(
        value,
        limits.SHARDS,
        lambda shard: (strict.digest(shard["logits"]), AttentionFacts.from_json(shard)),
    )
    strict.distinct(logits for logits, _ in pairs)
    return dict(pairs)
