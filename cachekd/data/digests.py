"""Digests: what names a sample, a file and an identity.

A sample key is blake2b-128 of the token ids as little-endian uint32; ids of sources, captures and
samples are blake2b-128 of canonical JSON or of packed bytes; files are named by sha256.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cachekd.config import canonical_json
from cachekd.types import Int32, UInt8

KEY_BYTES = 16
_HUB_BLOB = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger(__name__)


def sample_key(input_ids: Int32) -> bytes:
    """Key of a token sequence: blake2b-128 of its ids as little-endian uint32."""
    return hashlib.blake2b(
        np.ascontiguousarray(input_ids, dtype="<u4").tobytes(), digest_size=KEY_BYTES
    ).digest()


def sample_digest(
    key: bytes, roles: UInt8, prompt_length: int | None, domain: str, weight: float, copy: int
) -> bytes:
    """Id of a sample: its key, who wrote its tokens, its domain and weight, and which copy it is.

    Rows of a data set that are equal in all of these are told apart by ``copy`` = 0, 1, ..., so
    that a union of two caches holds as many copies as the larger of both.
    """
    packed = struct.pack("<qdq", -1 if prompt_length is None else prompt_length, weight, copy)
    parts = key + roles.tobytes() + packed + domain.encode()
    return hashlib.blake2b(parts, digest_size=KEY_BYTES).digest()


def json_id(value: Any) -> str:
    """blake2b-128 of canonical JSON, as hex: how source and capture ids are made."""
    return hashlib.blake2b(canonical_json(value).encode(), digest_size=KEY_BYTES).hexdigest()


def differences(left: Any, right: Any, name: str = "") -> list[str]:
    """Where two JSON values differ, a line a field: ``name: left / right``."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        lines = []
        for key in sorted({*left, *right}):
            lines += differences(left.get(key), right.get(key), f"{name}.{key}" if name else key)
        return lines
    return [] if left == right else [f"{name}: {left!r} / {right!r}"]


def bytes_digest(data: Any) -> str:
    """sha256 of bytes (or a buffer), as hex: how files of a cache are named."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a large file; remembered by path, size, mtime and inode.

    A file of the hub cache whose blob is named by its sha256 is not read at all.
    """
    real = path.resolve()
    if real.parent.name == "blobs" and _HUB_BLOB.fullmatch(real.name):
        return real.name
    stat = real.stat()
    fact = [str(real), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    memo = _memo_folder() / f"{json_id(fact)}.json"
    known = _read_memo(memo, fact)
    if known:
        return known
    with real.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    _write_memo(memo, {"file": fact, "sha256": digest})
    return digest


def _memo_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cachekd" / "digests"


def _read_memo(memo: Path, fact: list[Any]) -> str | None:
    try:
        value = json.loads(memo.read_text())
    except (OSError, ValueError):
        return None
    if isinstance(value, dict) and value.get("file") == fact:
        digest = value.get("sha256")
        return digest if isinstance(digest, str) and _HUB_BLOB.fullmatch(digest) else None
    return None


def _write_memo(memo: Path, value: dict[str, Any]) -> None:
    temporary = memo.with_suffix(f".{os.getpid()}.tmp")
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(value))
        temporary.replace(memo)
    except OSError as error:
        _log.info("the digest of %s is not remembered: %s", value["file"][0], error)
