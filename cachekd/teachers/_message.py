"""A head of JSON and a body of bytes as one message that shows whether it is whole.

The bytes: ``cks1``, the length of the head (uint32, little-endian), the head, the body, and
blake2b-128 of all before it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from cachekd.errors import DataError

_MAGIC = b"cks1"
_DIGEST = 16
FRAME = len(_MAGIC) + 4 + _DIGEST
"""Bytes of a message beside head and body."""


def pack(head: Mapping[str, Any], parts: Sequence[bytes]) -> bytes:
    """A message of a head and the parts of a body."""
    text = json.dumps(head, separators=(",", ":")).encode()
    data = b"".join([_MAGIC, struct.pack("<I", len(text)), text, *parts])
    return data + hashlib.blake2b(data, digest_size=_DIGEST).digest()


def unpack(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """Head and body of a message from anybody.

    Raises:
        DataError: it is none, or not as it was sent.
    """
    if len(data) < FRAME or not data.startswith(_MAGIC):
        raise DataError("expected a message of cachekd serve-teacher; found something else")
    whole = memoryview(data)
    digest = hashlib.blake2b(whole[:-_DIGEST], digest_size=_DIGEST).digest()
    if digest != whole[-_DIGEST:]:
        raise DataError("the message is not as it was sent: its digest is another")
    (length,) = struct.unpack_from("<I", data, len(_MAGIC))
    start = len(_MAGIC) + 4
    if start + length > len(data) - _DIGEST:
        raise DataError(f"a head of {length} bytes does not fit a message of {len(data)}")
    try:
        head = json.loads(bytes(whole[start : start + length]))
    except (ValueError, RecursionError) as error:
        raise DataError(f"the head of the message is not JSON: {error}") from error
    if not isinstance(head, dict):
        raise DataError("the head of the message is no JSON object")
    return head, whole[start + length : -_DIGEST]
