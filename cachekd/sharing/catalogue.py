"""Which caches lie at a shared location: one small file a cache, written by push.

    PARENT/catalogue/<id>.json     of PARENT/<folder>; id is a digest of folder and root digest

Writers never share a file. Comes in: a cache that was sealed at a location. Goes out: its `Entry`,
and the entries of all caches below a location; one without a file is read from its seal. The sketch
of an entry holds the keys below a threshold, evenly drawn as keys are digests, so that the share of
any data's keys that a cache covers is told without its index.
"""

from __future__ import annotations

import base64
import logging
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cachekd.data import limits, strict
from cachekd.data.digests import KEY_BYTES, json_id
from cachekd.data.packed import Keys
from cachekd.errors import CachekdError, CorruptCache, StoreError
from cachekd.sharing.content import sealed_content
from cachekd.store.identity import Identity
from cachekd.store.identity_files import has_cache
from cachekd.store.index import load_index
from cachekd.store.io import Location
from cachekd.store.layout import dump_document, index_name, manifest_name, read_document
from cachekd.store.manifest import Manifest, read_manifest
from cachekd.store.names import check_name
from cachekd.store.seal import samples_table

CATALOGUE = "catalogue"
_SKETCH_KEYS = 4096
_SOURCES = 16
_KIND = "catalogue"
_PROVENANCE = (
    "teacher",
    "revision",
    "tokenizer",
    "chat_template",
    "prompt_template",
    "add_eos",
    "bos_token",
    "eos_token",
    "clock",
)
_TOTALS = ("samples", "tokens", "bytes")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the catalogue tells of one cache.

    Attributes:
        folder: below the location.
        root, generation, sealed_at: of its seal; the time as ISO text, or None if it is not known.
        source_id, capture_id, attention_id: its identity.
        tokenizer: digest of its tokenizer.
        vocab_size: of its tokenizer.
        provenance: teacher, and how rows became tokens.
        kinds: of target.
        totals: counts of the seal.
        sources: names of the data files that its samples came from, at most 16.
        longest: tokens of its longest sample.
        threshold: keys whose first 8 bytes are below it are in the sketch.
        sketch: these keys, sorted.
    """

    folder: str
    root: str
    generation: int
    sealed_at: str | None
    source_id: str
    capture_id: str
    attention_id: str | None
    tokenizer: str
    vocab_size: int
    provenance: dict[str, Any]
    kinds: tuple[str, ...]
    totals: dict[str, int]
    sources: tuple[str, ...]
    longest: int
    threshold: int
    sketch: Keys

    def drawn(self, keys: Keys) -> Keys:
        """Of these keys those that the sketch tells of."""
        return keys.take(np.flatnonzero(keys.heads < np.uint64(self.threshold)))

    def dump(self) -> bytes:
        """Bytes of the entry's file."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "sketch"}
        packed = base64.b64encode(self.sketch.data.data).decode()
        lists = {"kinds": list(self.kinds), "sources": list(self.sources)}
        return dump_document(_KIND, {**plain, **lists, "sketch": packed})


def enter(
    into: Location, identity: Identity, sealed: Manifest, near: Location | None = None
) -> str | None:
    """Enter a cache in the catalogue beside it, in the place of older entries of it.

    Args:
        into: the cache.
        identity: of it.
        sealed: its newest seal.
        near: where the same index and samples lie too, to be read from there.

    Returns:
        the entry's file, or None where there is no folder above, or none that can be written: then
        it is warned, and the cache is found by its seal.
    """
    above = _above(into)
    if above is None:
        return None
    parent, folder = above
    try:
        entry = entry_of(into, folder, identity, sealed, near)
        name = _file(entry)
        parent.replace(name, entry.dump())
        _tidy(parent, entry, name)
    except StoreError as error:
        _log.warning("%s is not entered in the catalogue: %s", into.url, error)
        return None
    return parent.path(name)


def _tidy(parent: Location, entry: Entry, name: str) -> None:
    """Take away the entries that one stands for; where nobody may, they stay and do not count."""
    for old, other in _read(parent):
        if other.folder != entry.folder or old == name or other.generation > entry.generation:
            continue
        try:
            parent.remove(old)
        except StoreError as error:
            _log.info("%s stays in the catalogue: %s", old, error)


def entry_of(
    location: Location,
    folder: str,
    identity: Identity,
    sealed: Manifest,
    near: Location | None = None,
) -> Entry:
    """The entry of a sealed cache (arguments as of `enter`)."""
    name, held = index_name(sealed.index), near or location
    keys = load_index(name, held.checked(name, sealed.index)).keys
    sources, longest = _samples(held, sealed)
    threshold = min((1 << 64) - 1, (1 << 64) * _SKETCH_KEYS // max(1, len(keys)))
    at = location.entries().get(manifest_name(sealed.generation))
    kinds = ("logits",) if identity.attention_id is None else ("logits", "attention")
    return Entry(
        folder=folder,
        root=sealed.root,
        generation=sealed.generation,
        sealed_at=_iso(at.modified if at else None),
        source_id=identity.source_id,
        capture_id=identity.capture_id,
        attention_id=identity.attention_id,
        tokenizer=str(identity.source["tokenizer"]),
        vocab_size=int(identity.source["vocab_size"]),
        provenance={key: identity.provenance.get(key) for key in _PROVENANCE},
        kinds=kinds,
        totals=dict(sealed.totals),
        sources=sources,
        longest=longest,
        threshold=threshold,
        sketch=keys.take(np.flatnonzero(keys.heads < np.uint64(threshold))),
    )


def _samples(location: Location, sealed: Manifest) -> tuple[tuple[str, ...], int]:
    """Names of the data files of a cache's samples, and tokens of the longest."""
    names: set[str] = set()
    longest = 0
    for digest in sealed.samples:
        table = samples_table(location, digest)
        names |= {str(name).rsplit("/", 1)[-1] for name in table["source"].unique().to_pylist()}
        longest = max([longest, *table["n_tokens"].unique().to_pylist()])
    return tuple(sorted(names)[:_SOURCES]), longest


def entries(location: Location) -> tuple[list[Entry], list[str]]:
    """All sealed caches directly below a location, newest seals alone, and what could not be read.

    An entry of the catalogue counts if the newest seal has its generation and root; a cache without
    such an entry is read itself.
    """
    told: dict[tuple[str, int, str], Entry] = {}
    problems: list[str] = []
    for _, entry in _read(location, problems):
        told[entry.folder, entry.generation, entry.root] = entry
    found = []
    for folder in location.folders():
        if folder == CATALOGUE:
            continue
        try:
            current = _current(location, folder, told)
        except CachekdError as error:
            problems.append(f"{folder}: {error}")
        else:
            found += [current] if current else []
    return found, problems


def below(location: Location, folder: str) -> Location:
    """A cache below a location."""
    return Location(posixpath.join(location.target.rstrip("/"), folder))


def _current(
    location: Location, folder: str, told: Mapping[tuple[str, int, str], Entry]
) -> Entry | None:
    """The entry of a folder, if it is a sealed cache."""
    check_name(folder)
    place = below(location, folder)
    sealed = read_manifest(place)
    if sealed is None or not has_cache(place):
        return None
    known = told.get((folder, sealed.generation, sealed.root))
    if known is not None:
        return known
    content = sealed_content(place)
    return entry_of(place, folder, content.identity, content.manifest)


def _read(location: Location, problems: list[str] | None = None) -> Iterator[tuple[str, Entry]]:
    """Entries of a catalogue by file; one that cannot be read is told, and left."""
    for base in location.names(CATALOGUE):
        name = f"{CATALOGUE}/{base}"
        try:
            entry = _parse(read_document(location, _KIND, name))
        except (StoreError, KeyError, TypeError, ValueError) as error:
            if problems is not None:
                problems.append(f"{location.path(name)} is no entry of a catalogue: {error!s:.300}")
        else:
            yield name, entry


def _parse(document: dict[str, Any]) -> Entry:
    packed = base64.b64decode(strict.text(document["sketch"]), validate=True)
    at, attention = document["sealed_at"], document["attention_id"]
    return Entry(
        folder=check_name(strict.text(document["folder"])),
        root=strict.short_id(document["root"]),
        generation=strict.whole(document["generation"], 10**9),
        sealed_at=None if at is None else strict.text(at),
        source_id=strict.short_id(document["source_id"]),
        capture_id=strict.short_id(document["capture_id"]),
        attention_id=None if attention is None else strict.short_id(attention),
        tokenizer=strict.text(document["tokenizer"]),
        vocab_size=strict.whole(document["vocab_size"], 1 << 31, 1),
        provenance=dict(strict.fields(document["provenance"])),
        kinds=strict.listed(document["kinds"], 8, strict.text),
        totals=_totals(document["totals"]),
        sources=strict.listed(document["sources"], _SOURCES, strict.text),
        longest=strict.whole(document["longest"], limits.TOKENS),
        threshold=strict.whole(document["threshold"], (1 << 64) - 1),
        sketch=Keys(np.frombuffer(packed, f"S{KEY_BYTES}")),
    )


def _totals(value: Any) -> dict[str, int]:
    found = strict.counts(value)
    lacking = [name for name in _TOTALS if name not in found]
    if lacking:
        raise ValueError(f"its totals lack {', '.join(lacking)}")
    return found


def _above(into: Location) -> tuple[Location, str] | None:
    """The location above a cache, and the cache's folder."""
    parent, _, folder = into.target.rstrip("/").rpartition("/")
    if into.local and not parent:
        parent = "." if "/" not in into.target else "/"
    if not folder or not parent or parent.endswith((":", ":/", "/")):
        return None
    try:
        check_name(folder)
    except CorruptCache:  # a folder that no cache below a location may be called
        return None
    return Location(parent), folder


def _file(entry: Entry) -> str:
    return f"{CATALOGUE}/{json_id({'folder': entry.folder, 'root': entry.root})}.json"


def _iso(modified: float | None) -> str | None:
    if modified is None:
        return None
    return datetime.fromtimestamp(modified, UTC).isoformat(timespec="seconds")
