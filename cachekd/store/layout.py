"""Names of the files of a cache, and its JSON documents: checked on the way in and out.

Every JSON file states its format and version and ends in a checksum of itself: sha256 of its
canonical JSON (sorted keys, no spaces) without the field ``checksum``. This rule is that of every
format version, so that an altered version number is told from another version.

A field that this version does not know is left as it is and not looked at, unless the document
names it in its list ``critical``: then it changes what the others mean, and is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from cachekd.config import canonical_json
from cachekd.data import limits, strict
from cachekd.errors import CorruptCache, DataError, StoreError
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
_LARGE = frozenset(["plan", "manifest"])
_CRITICAL = "critical"
_PART = 1 << 20
_SEALED = re.compile(
    rf"{re.escape(CACHE)}|({KIND}|{ATTENTION})/capture\.json"
    r"|plans/[0-9a-f]{64}\.json|units/[0-9a-f]{64}-(0|[1-9][0-9]{0,8})\.json"
)


def sealed_name(name: str) -> str:
    """The name if a seal may give a digest for it: of an identity, a plan or a commit record.

    Raises:
        ValueError: it may not.
    """
    if not _SEALED.fullmatch(name):
        raise ValueError(f"{name!r:.200} is no file that a seal names")
    return name


def most_bytes(kind: str) -> int:
    """The largest document of a kind that is read."""
    return limits.LARGE_DOCUMENT_BYTES if kind in _LARGE else limits.DOCUMENT_BYTES


def _most_values(kind: str) -> int:
    return limits.LARGE_DOCUMENT_VALUES if kind in _LARGE else limits.DOCUMENT_VALUES


def plan_name(digest: str) -> str:
    """File of a plan."""
    return f"plans/{digest}.json"


def proposal_name(run: str) -> str:
    """File that proposes the plan of a run, until there is one."""
    return f"plans/{run}.first"


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
    text, digest = canonical_json(bare), hashlib.sha256()
    for start in range(0, len(text), _PART):  # a plan may be large: it is not copied whole
        digest.update(text[start : start + _PART].encode())
    return digest.hexdigest()


def dump_document(kind: str, content: Mapping[str, Any]) -> bytes:
    """A JSON document of the cache as bytes, with format, version and checksum.

    Raises:
        DataError: it is larger than what is read.
    """
    document = {"format": f"cachekd-{kind}", "version": VERSION, **content}
    document["checksum"] = _checksum(document)
    parts = json.JSONEncoder(sort_keys=True, indent=1).iterencode(document)
    data = "".join([*parts, "\n"]).encode()
    most = most_bytes(kind)
    if len(data) > most:
        raise DataError(
            f"a {kind} of {len(data)} bytes; at most {most} are read (cachekd limits). Split the "
            "data into several runs, or raise unit_tokens and batch_tokens"
        )
    return data


def as_written(kind: str, document: Mapping[str, Any]) -> bytes:
    """Bytes of a document that was read, as it is written."""
    own = ("format", "version", "checksum")
    return dump_document(kind, {key: value for key, value in document.items() if key not in own})


def load_document(kind: str, name: str, data: bytes) -> dict[str, Any]:
    """Parse a JSON document of the cache.

    Raises:
        CorruptCache: it is not the document that was written.
        StoreError: it is of another format version, or says what this version cannot know.
    """
    try:
        document = strict.parse_json(
            data, most_bytes=most_bytes(kind), most_values=_most_values(kind)
        )
    except ValueError as error:
        raise CorruptCache(f"{name} is not JSON ({error}); the file was altered") from error
    if not isinstance(document, dict) or document.get("format") != f"cachekd-{kind}":
        raise CorruptCache(f"{name}: expected a cachekd-{kind} document; the file was altered")
    if document.get("checksum") != _checksum(document):
        raise CorruptCache(f"{name}: its checksum does not fit; the file was altered")
    _check_version(name, document.get("version"))
    refuse_critical(name, document)
    return document


def _check_version(name: str, version: Any) -> None:
    if type(version) is int and version == VERSION:
        return
    newer = type(version) is int and version > VERSION
    advice = (
        "It needs a newer cachekd: pip install --upgrade cachekd"
        if newer
        else "Install the cachekd that wrote it, or make the cache anew"
    )
    raise StoreError(
        f"{name} has format version {version!s:.80}; this cachekd reads version {VERSION}. {advice}"
    )


def refuse_critical(name: str, document: Mapping[str, Any]) -> None:
    """Refuse a document that lists fields as critical: this version has none of these.

    Raises:
        CorruptCache: the list is none.
        StoreError: it names a field.
    """
    critical = document.get(_CRITICAL, [])
    if not isinstance(critical, list) or not all(isinstance(field, str) for field in critical):
        raise CorruptCache(f"{name}: {_CRITICAL} is no list of names; the file was altered")
    if critical:
        raise StoreError(
            f"{name} cannot be read without knowing {', '.join(critical)[:200]}, which this "
            "cachekd does not. It needs a newer cachekd: pip install --upgrade cachekd"
        )


def read_document(location: Location, kind: str, name: str) -> dict[str, Any]:
    """Read and parse a JSON document of the cache (errors of `load_document`)."""
    return load_document(kind, name, location.read(name, most_bytes(kind)))
