"""Codecs: sparse targets of documents to bytes and back. The file name is the codec name.

A codec module has ``PLUGIN``, a class with this protocol. How values are rounded belongs to the
capture id (`cachekd.codecs._grids.Grid`); how they are packed belongs to the shard, whose metadata
names the codec and keeps the header.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from cachekd.errors import CorruptCache
from cachekd.types import TopKLogits

if TYPE_CHECKING:
    from cachekd.codecs._priors import Prior

Encoded = tuple[bytes, int, int]
"""Bytes of a document's targets, its rows and its entries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecHeader:
    """What a decoder must know beside the bytes; stored in the metadata of each shard.

    Attributes:
        codec: plugin name.
        vocab_size: real vocabulary V; ids are below it.
        values: how log-probs were rounded: float16, float32, sqrt or log.
        step: distance of two levels of sqrt and log, else None.
        samples: draws per row where entries are draws only, else 0.
        tau: weight of a sampled entry beside an exact head, else 0.
        temperatures: captured temperatures other than 1, ascending.
        prior: digest of what the codec learned, or None.
    """

    codec: str
    vocab_size: int
    values: str
    temperatures: tuple[float, ...]
    step: float | None = None
    samples: int = 0
    tau: float = 0.0
    prior: str | None = None

    def to_json(self) -> str:
        """As JSON text for the shard's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> CodecHeader:
        """From the shard's metadata.

        Raises:
            CorruptCache: fields are missing, of another type, or impossible.
        """
        try:
            value: dict[str, Any] = json.loads(text)
            header = cls(
                codec=str(value["codec"]),
                vocab_size=int(value["vocab_size"]),
                values=str(value["values"]),
                temperatures=tuple(float(t) for t in value["temperatures"]),
                step=None if value["step"] is None else float(value["step"]),
                samples=int(value["samples"]),
                tau=float(value["tau"]),
                prior=None if value["prior"] is None else str(value["prior"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptCache(f"codec header cannot be read: {error!r}") from error
        # A name from a file finds a plugin, never a module:Class of the writer's choice.
        if not header.codec.isidentifier():
            raise CorruptCache(f"{header.codec!r} is not the name of a codec")
        levels = header.values in ("sqrt", "log")
        good = header.vocab_size >= 1 and header.samples >= 0 and 0 <= header.tau <= 1
        good &= levels or header.values in ("float16", "float32")
        good &= (header.step is not None and 0 < header.step <= 1) == levels
        if not good:
            raise CorruptCache(f"codec header holds impossible values: {value}")
        return header


class Codec(Protocol):
    """Encodes and decodes the targets of documents.

    Raises:
        ConfigError: the codec cannot hold what the header describes.
    """

    uses_prior: ClassVar[bool]
    """Whether it packs better with a prior."""

    def __init__(self, header: CodecHeader, prior: Prior | None = None) -> None: ...

    def encode(self, targets: TopKLogits) -> bytes:
        """Bytes of one document's targets."""

    def decode(self, records: Sequence[Encoded]) -> list[TopKLogits]:
        """Targets of documents; many at once cost less than one by one.

        Raises:
            CorruptCache: size, checksum or values are not what the shape allows; sizes are
                compared before anything is allocated.
        """
