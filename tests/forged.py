"""Caches that somebody forged: documents changed, and every digest and checksum made anew.

So nothing but the check under test can refuse them. `DOORS` are the ways into a cache.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cachekd
from cachekd.data.digests import bytes_digest, json_id
from cachekd.store.io import Location
from cachekd.store.layout import dump_document
from cachekd.store.merge import merge
from cachekd.store.seal import seal
from cachekd.store.verify import verify

Change = Callable[[dict[str, Any]], Any]
BARE = ("format", "checksum", "version")


def load(path: Path) -> dict[str, Any]:
    """Fields of a document, without what `dump_document` adds."""
    document: dict[str, Any] = json.loads(path.read_text())
    return {name: value for name, value in document.items() if name not in BARE}


def put(path: Path, data: bytes) -> None:
    """Other bytes under this name: a new file, for the old one may still be mapped."""
    path.parent.mkdir(exist_ok=True)
    new = path.parent / "forged"
    new.write_bytes(data)
    os.replace(new, path)


def nothing(document: dict[str, Any]) -> None:
    """No change."""


def forge(
    cache: Path, *, plan: Change = nothing, unit: Change = nothing, manifest: Change = nothing
) -> None:
    """Change the documents of a sealed cache, of each kind the first; all that names them follows.

    What a change returns, if anything, is written in the place of the document.
    """
    renamed = _forge_plan(cache, plan)
    _forge_units(cache, unit, renamed)
    path = cache / "manifest-1.json"
    document = load(path)
    names = {name: _renamed(name, renamed) for name in document["files"]}
    document["files"] = {
        new: bytes_digest((cache / new).read_bytes()) for new in sorted(names.values())
    }
    for run in document["runs"]:
        run["plan"] = renamed.get(run["plan"], run["plan"])
    changed = manifest(document)
    if changed is None:
        document["root"] = _root(document)
    put(path, written("manifest", document if changed is None else changed))


def _root(document: dict[str, Any]) -> Any:
    """The root digest of what a seal names, as far as it can be made."""
    try:
        logits = document["kinds"]["logits"]
        content = {
            "source_id": document["source_id"],
            "capture_id": logits["capture_id"],
            "samples": sorted(document["samples"]),
            "shards": sorted({shard["digest"] for shard in logits["shards"]}),
        }
        return json_id(content)
    except (TypeError, KeyError):
        return document["root"]


def written(kind: str, content: Any) -> bytes:
    """Bytes of a document; text and bytes are taken as they are."""
    if isinstance(content, bytes):
        return content
    return dump_document(kind, content)


def _forge_plan(cache: Path, change: Change) -> dict[str, str]:
    renamed = {}
    for path in sorted((cache / "plans").iterdir())[:1]:
        document = load(path)
        changed = change(document)
        data = written("plan", document if changed is None else changed)
        path.unlink()
        renamed[path.stem] = bytes_digest(data)
        put(cache / "plans" / f"{renamed[path.stem]}.json", data)
    return renamed


def _forge_units(cache: Path, change: Change, renamed: dict[str, str]) -> None:
    for number, path in enumerate(sorted((cache / "units").iterdir())):
        document = load(path)
        document["plan"] = renamed.get(document["plan"], document["plan"])
        changed = None if number else change(document)
        data = written("unit", document if changed is None else changed)
        path.unlink()
        put(cache / _renamed(f"units/{path.name}", renamed), data)


def _renamed(name: str, renamed: dict[str, str]) -> str:
    for old, new in renamed.items():
        name = name.replace(old, new)
    return name


def read_all(url: str, *, partial: bool = False) -> list[bytes]:
    """The token ids of every record."""
    return [record.input_ids.tobytes() for record in cachekd.open_cache(url, partial=partial)]


def checked(url: str, *, partial: bool = False) -> list[bytes]:
    """As `read_all` of a cache that `verify` finds clean."""
    problems = verify(url, partial=partial).problems
    if problems:
        raise cachekd.errors.CorruptCache("; ".join(problems))
    return read_all(url, partial=partial)


def sealed_again(url: str) -> list[bytes]:
    """As `read_all` of a cache that was sealed again."""
    seal(Location(url))
    return read_all(url)


def merged(url: str) -> list[bytes]:
    """As `read_all` of a new cache that this one was merged into."""
    with tempfile.TemporaryDirectory(dir=Path(url).parent) as folder:
        merge([url], f"{folder}/merged")
        return read_all(f"{folder}/merged")


DOORS: dict[str, Callable[[str], list[bytes]]] = {
    "open": read_all,
    "verify": checked,
    "seal": sealed_again,
    "open-partial": lambda url: read_all(url, partial=True),
    "verify-partial": lambda url: checked(url, partial=True),
    "merge": merged,
}
OF_SEAL = ("open", "verify", "seal")
OF_STATE = ("open-partial", "verify-partial", "seal", "merge")
