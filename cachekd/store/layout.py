"""Names of the files of a cache, and its JSON documents: checked on the way in and out.

Every JSON file states its format and version and ends in a checksum of itself: sha256 of its
canonical JSON (sorted keys, no spaces) without the field ``checksum``. This rule is that of every
format version, so that an altered version number is told from another version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cachekd.config import canonical_json
from cachekd.errors import CorruptCache, StoreError
from cachekd.store.io import Location

VERSION = 2
KIND = "logits"
CACHE = "cache.json"
CAPTURE = f"{KIND}/capture.json"
ATTENTION = "attention"
ATTENTION_CAPTURE = f"{ATTENTION}/capture.json"
GENERATED = "generated"
HINT = "manifest.json"
CARD = "README.md"
FOLDERS = ("plans", "units", "samples", KIND, ATTENTION, "priors", "index", GENERATED)
_JSON_LIMIT = 1 << 30


def plan_name(digest: str) -> str:
    """File of a plan."""
    return f"plans/{digest}.json"


def unit_name(plan: str, number: int) -> str:
    """File of a commit record."""
    return f"units/{plan}-{number}.json"


def samples_name(digest: str) -> str:
    """File of a samples shard."""
    return f"samples/{digest}.parquet"


def shard_name(digest: str) -> str:
    """File of a shard of logits."""
    return f"{KIND}/{digest}.parquet"


def attention_name(digest: str) -> str:
    """File of a shard of attention."""
    return f"{ATTENTION}/{digest}.safetensors"


def index_name(digest: str) -> str:
    """File of an index."""
    return f"index/{digest}"


def prior_name(digest: str) -> str:
    """File of what a codec learned."""
    return f"priors/{digest}"


def generated_name(recipe: str, digest: str) -> str:
    """File of responses that were written with a recipe."""
    return f"{GENERATED}/{recipe}-{digest}.parquet"


def manifest_name(generation: int) -> str:
    """File of a seal."""
    return f"manifest-{generation}.json"


def _checksum(document: Mapping[str, Any]) -> str:
    bare = {key: value for key, value in document.items() if key != "checksum"}
    return hashlib.sha256(canonical_json(bare).encode()).hexdigest()


def dump_document(kind: str, content: Mapping[str, Any]) -> bytes:
    """A JSON document of the cache as bytes, with format, version and checksum."""
    document = {"format": f"cachekd-{kind}", "version": VERSION, **content}
    document["checksum"] = _checksum(document)
    return (json.dumps(document, sort_keys=True, indent=1) + "\n").encode()


def load_document(kind: str, name: str, data: bytes) -> dict[str, Any]:
    """Parse a JSON document of the cache.

    Raises:
        CorruptCache: it is not the document that was written.
        StoreError: it is of another format version.
    """
    if len(data) > _JSON_LIMIT:
        raise CorruptCache(f"{name}: {len(data)} bytes, more than a document may have")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptCache(f"{name} is not JSON ({error}); the file was altered") from error
    if not isinstance(document, dict) or document.get("format") != f"cachekd-{kind}":
        raise CorruptCache(f"{name}: expected a cachekd-{kind} document; the file was altered")
    if document.get("checksum") != _checksum(document):
        raise CorruptCache(f"{name}: its checksum does not fit; the file was altered")
    if document.get("version") != VERSION:
        raise StoreError(
            f"{name} has format version {document.get('version')}; this cachekd reads version "
            f"{VERSION}. Install the cachekd that wrote it, or make the cache anew"
        )
    return document


def read_document(location: Location, kind: str, name: str) -> dict[str, Any]:
    """Read and parse a JSON document of the cache (errors of `load_document`)."""
    return load_document(kind, name, location.read(name))
