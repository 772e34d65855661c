"""The files that say whose a cache is: ``cache.json`` and the ``capture.json`` of each kind.

Comes in: an `Identity`. Goes out: the same, as found on storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cachekd.errors import CacheNotFound, CorruptCache
from cachekd.store.claims import Claims
from cachekd.store.identity import Identity, identity_of, refuse_difference
from cachekd.store.io import Location
from cachekd.store.layout import (
    ATTENTION,
    ATTENTION_CAPTURE,
    CACHE,
    CAPTURE,
    KIND,
    dump_document,
    read_document,
)


def has_cache(location: Location) -> bool:
    """Whether there is a cache: one whose identity a writer has begun to write is none yet."""
    # Looked at first: the capture and plans come after the rest of an identity.
    begun = location.exists(CAPTURE) or (location.lists and bool(location.names("plans")))
    return location.exists(CACHE) and begun


def lost_identity(location: Location) -> bool:
    """Whether there was a cache whose ``cache.json`` is gone, which its teacher can write anew.

    Not where attention was captured: what was chosen of it stands there too.
    """
    lost = not location.exists(CACHE) and location.exists(CAPTURE)
    return lost and not location.exists(ATTENTION_CAPTURE)


def read_identity(location: Location) -> Identity:
    """Identity of the cache at a location.

    Raises:
        CacheNotFound: there is none.
    """
    there = has_cache(location)
    if not there and location.lists and location.names("plans"):
        # Looked at again: plans come after it, and a writer may have come between these looks.
        there = has_cache(location)
        if not there:
            raise location.missing(CACHE)
    if not there:
        raise CacheNotFound(
            f"no cache at {location.url}: it has no {CACHE}. Check the path, or make one with "
            "cachekd precompute"
        )
    cache = read_document(location, "cache", CACHE)
    capture = read_document(location, "capture", CAPTURE)
    # A cache of logits alone says nothing of kinds.
    attentive = cache.get("kinds", [KIND]) == [ATTENTION, KIND]
    if not attentive and cache.get("kinds", [KIND]) != [KIND]:
        raise CorruptCache(f"{location.path(CACHE)}: {cache['kinds']!r:.80} are no kinds of target")
    attention = read_document(location, "capture", ATTENTION_CAPTURE) if attentive else {}
    for name, found in ((CAPTURE, capture), (ATTENTION_CAPTURE, attention)):
        if found and found.get("source_id") != cache.get("source_id"):
            raise CorruptCache(f"{location.path(name)} belongs to another source than {CACHE}")
    try:
        return identity_of(cache, capture, attention if attentive else None)
    except (CorruptCache, KeyError, TypeError, ValueError) as error:
        raise CorruptCache(f"{location.url}: no identity: {error!r:.300}") from error


def write_identity(location: Location, identity: Identity) -> None:
    """Write ``cache.json`` and each ``capture.json``, once; another writer may have been first.

    The capture of logits comes last: before it there is no cache, and what a writer left that was
    stopped on the way does not count, where locks tell that it was.

    Raises:
        MismatchError: another teacher's ``cache.json`` is there.
    """
    *before, (name, data) = _identity_documents(identity)
    with Claims(location, "identity") as claims:
        alone = claims.wait(0)
        begun = not location.exists(name)
        if not begun and not location.exists(CACHE):
            _refuse_other(location, identity)
        for other, expected in before:
            if location.create(other, expected):
                continue
            if begun and alone:
                location.replace(other, expected)  # of a writer that died
            elif other == CACHE:
                _refuse_other_teacher(location, identity)
        location.create(name, data)


def _refuse_other(location: Location, identity: Identity) -> None:
    """A lost ``cache.json`` is written again by the same teacher alone."""
    stated = read_document(location, "capture", CAPTURE)
    left = {name: stated.get(name) for name in ("source_id", "capture_id")}
    right = {"source_id": identity.source_id, "capture_id": identity.capture_id}
    refuse_difference("precompute", left, right, location.path(CAPTURE), "this run")


def _refuse_other_teacher(location: Location, identity: Identity) -> None:
    """Before a capture is written beside another teacher's ``cache.json``: that is no cache."""
    stated = read_document(location, "cache", CACHE)
    if stated.get("source_id") != identity.source_id:
        sources = stated.get("source"), dict(identity.source)
        refuse_difference("precompute", *sources, location.path(CACHE), "this run")


def _identity_documents(identity: Identity) -> list[tuple[str, bytes]]:
    content = {
        "source_id": identity.source_id,
        "source": dict(identity.source),
        "provenance": dict(identity.provenance),
    }
    captures: list[tuple[str, str, str | None, Mapping[str, Any]]]
    captures = [(CAPTURE, KIND, identity.capture_id, identity.capture)]
    if identity.attention is not None:
        content["kinds"] = [ATTENTION, KIND]
        captures.insert(
            0, (ATTENTION_CAPTURE, ATTENTION, identity.attention_id, identity.attention)
        )
    documents = [(CACHE, dump_document("cache", content))]
    for name, kind, capture_id, capture in captures:
        stated = {
            "kind": kind,
            "source_id": identity.source_id,
            "capture_id": capture_id,
            "capture": dict(capture),
        }
        documents.append((name, dump_document("capture", stated)))
    return documents
