"""Codecs: sparse targets of documents to bytes and back. The file name is the codec name.

A codec module has ``PLUGIN``, a class with this protocol. How values are rounded belongs to the
capture id (`cachekd.codecs._grids.Grid`); how they are packed belongs to the shard, whose metadata
names the codec and keeps the header.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from cachekd.data import limits, strict
from cachekd.errors import CorruptCache
from cachekd.types import TopKLogits

if TYPE_CHECKING:
    from cachekd.codecs._priors import Prior

MIN_STEP = 1 / 240
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
            data = text.encode() if isinstance(text, str) else text
            value: dict[str, Any] = strict.parse_json(
                data, most_bytes=limits.HEADER_BYTES, most_values=limits.HEADER_VALUES
            )
            header = cls(
                codec=strict.text(value["codec"]),
                vocab_size=strict.whole(value["vocab_size"], limits.VOCABULARY, 1),
                values=strict.text(value["values"]),
                temperatures=strict.listed(
                    value["temperatures"], limits.TEMPERATURES, strict.number
                ),
                step=None if value["step"] is None else strict.number(value["step"]),
                samples=strict.whole(value["samples"], limits.SAMPLES_DRAWN),
                tau=strict.number(value["tau"]),
                prior=None if value["prior"] is None else strict.digest(value["prior"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptCache(f"codec header cannot be read: {error!r:.300}") from error
        # A name from a file finds a plugin, never a module:Class of the writer's choice.
        if not header.codec.isidentifier():
            raise CorruptCache(f"{header.codec!r} is not the name of a codec")
        if not header._possible():
            raise CorruptCache(f"codec header holds impossible values: {header}")
        return header

    def _possible(self) -> bool:
        further = self.temperatures
        if self.values in ("sqrt", "log"):
            good = self.step is not None and MIN_STEP <= self.step <= 1
        else:
            good = self.step is None and self.values in ("float16", "float32")
        good &= 0 <= self.tau <= 1 and not (self.samples and self.tau)
        good &= all(math.isfinite(t) and t > 0 and t != 1 for t in further)
        return good and further == tuple(sorted(set(further)))


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

    def decode_unscaled(self, records: Sequence[Encoded]) -> list[TopKLogits]:
        """As `decode`, but levels without the scale of their row.

        Scaled levels may round to others; `encode` gives these back exactly.
        """
