"""Codecs: sparse targets of one document to bytes and back. The file name is the codec name.

A codec module has ``PLUGIN``, a class with this protocol. How values are rounded belongs to the
capture id (`CodecHeader.logprob_dtype`); how they are packed belongs to the shard, whose metadata
names the codec and keeps the header.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from cachekd.errors import CorruptCache
from cachekd.types import TopKLogits


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecHeader:
    """What a decoder must know beside the bytes; stored in the metadata of each shard.

    Attributes:
        codec: plugin name.
        vocab_size: real vocabulary V; ids are below it.
        logprob_dtype: float16 or float32.
        temperatures: captured temperatures other than 1, ascending.
    """

    codec: str
    vocab_size: int
    logprob_dtype: str
    temperatures: tuple[float, ...]

    def to_json(self) -> str:
        """As JSON text for the shard's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> CodecHeader:
        """From the shard's metadata.

        Raises:
            CorruptCache: fields are missing or of another type.
        """
        try:
            value: dict[str, Any] = json.loads(text)
            header = cls(
                codec=str(value["codec"]),
                vocab_size=int(value["vocab_size"]),
                logprob_dtype=str(value["logprob_dtype"]),
                temperatures=tuple(float(t) for t in value["temperatures"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptCache(f"codec header cannot be read: {error!r}") from error
        # A name from a file finds a plugin, never a module:Class of the writer's choice.
        if not header.codec.isidentifier():
            raise CorruptCache(f"{header.codec!r} is not the name of a codec")
        if header.logprob_dtype not in ("float16", "float32") or header.vocab_size < 1:
            raise CorruptCache(f"codec header holds impossible values: {value}")
        return header


class Codec(Protocol):
    """Encodes and decodes the targets of one document."""

    def __init__(self, header: CodecHeader) -> None: ...

    def encode(self, targets: TopKLogits) -> bytes:
        """Bytes of one document's targets."""

    def decode(self, data: bytes, rows: int, entries: int) -> TopKLogits:
        """Targets of ``rows`` rows and ``entries`` entries.

        Raises:
            CorruptCache: size, checksum or values are not what the shape allows; sizes are
                compared before anything is allocated.
        """
