"""The plain codec: little-endian planes in one zstd frame, nothing lost beyond the stored dtype.

The planes of a document with R rows and n entries, without padding between them:

    counts        uint32   [R]     entries of each row
    ids           uint8    [3, n]  token ids, 24 bits: low, middle and high bytes as planes
    logprobs      float16 or float32 [n], held to the finite values of the dtype
    tail          float32  [R]
    next_logprob  float32  [R]
    entropy       float32  [R]
    lognorm       float32  [R]     once for each stored temperature, ascending

The frame states its content size and carries a checksum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import zstandard

from cachekd.codecs import CodecHeader, Encoded
from cachekd.codecs._frames import unpack_frame
from cachekd.data import limits
from cachekd.errors import ConfigError, CorruptCache
from cachekd.types import TopKLogits

if TYPE_CHECKING:
    from cachekd.codecs._priors import Prior

_LEVEL = 3


class PlainCodec:
    """See the module's text for the layout."""

    uses_prior: ClassVar[bool] = False

    def __init__(self, header: CodecHeader, prior: Prior | None = None) -> None:
        if header.step is not None or header.samples or header.tau:
            raise ConfigError(
                "the plain codec holds exact heads in float16 or float32; use --codec packed for "
                "levels and for sampled entries"
            )
        if header.vocab_size > limits.VOCABULARY:
            raise CorruptCache(f"vocabulary {header.vocab_size} does not fit 24-bit ids")
        self._header = header
        self._value = np.dtype(header.values).newbyteorder("<")
        self._lowest = np.float32(np.finfo(self._value).min)

    def encode(self, targets: TopKLogits) -> bytes:
        """Bytes of one document's targets (all float32 but the log-probs, rounded to dtype)."""
        ids = targets.ids.astype("<u4").view(np.uint8).reshape(-1, 4)
        planes = [
            np.diff(targets.offsets).astype("<u4"),
            np.ascontiguousarray(ids[:, :3].T),
            # A teacher may mask tokens with huge negative logits: -inf would make 0 * inf of them.
            np.maximum(targets.logprobs, self._lowest).astype(self._value),
            targets.tail.astype("<f4"),
            targets.next_logprob.astype("<f4"),
            targets.entropy.astype("<f4"),
            *(targets.lognorm[t].astype("<f4") for t in self._header.temperatures),
        ]
        compressor = zstandard.ZstdCompressor(
            level=_LEVEL, write_checksum=True, write_content_size=True
        )
        return compressor.compress(b"".join(plane.tobytes() for plane in planes))

    def decode(self, records: Sequence[Encoded]) -> list[TopKLogits]:
        """Targets of documents.

        Raises:
            CorruptCache: a frame is damaged, or its size or values do not fit the shape.
        """
        return [self._decode(*record) for record in records]

    def decode_unscaled(self, records: Sequence[Encoded]) -> list[TopKLogits]:
        """The same: there are no levels."""
        return self.decode(records)

    def _decode(self, data: bytes, rows: int, entries: int) -> TopKLogits:
        if entries > rows * self._header.vocab_size:
            raise CorruptCache(
                f"{entries} entries in {rows} rows; a vocabulary of {self._header.vocab_size} "
                "cannot have so many"
            )
        raw = self._decompress(data, self._size(rows, entries))
        place = 0

        def plane(dtype: np.dtype[np.generic] | str, count: int) -> np.ndarray:
            nonlocal place
            values = np.frombuffer(raw, dtype=dtype, count=count, offset=place)
            place += values.nbytes
            return values

        counts = plane("<u4", rows)
        low, middle, high = (plane("u1", entries).astype(np.int32) for _ in range(3))
        ids = low | (middle << 8) | (high << 16)
        offsets = np.zeros(rows + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])  # at most 2^24 rows of 2^32: no sum goes around
        if offsets[-1] != entries or (entries and int(ids.max()) >= self._header.vocab_size):
            raise CorruptCache("decoded counts or token ids do not fit the record")
        logprobs = plane(self._value, entries).astype(np.float32)
        further = self._header.temperatures
        scalars = [plane("<f4", rows).astype(np.float32) for _ in range(3 + len(further))]
        if not all((values < np.inf).all() for values in (logprobs, *scalars)):
            raise CorruptCache("a value of a record is NaN or infinite")
        tail, next_logprob, entropy, *lognorm = scalars
        return TopKLogits(
            offsets=offsets,
            ids=ids,
            logprobs=logprobs,
            weights=None,
            tail=tail,
            next_logprob=next_logprob,
            entropy=entropy,
            lognorm={1.0: np.zeros(rows, np.float32)} | dict(zip(further, lognorm, strict=True)),
            vocab_size=self._header.vocab_size,
        )

    def _size(self, rows: int, entries: int) -> int:
        scalars = 4 + len(self._header.temperatures)
        return 4 * scalars * rows + (3 + self._value.itemsize) * entries

    def _decompress(self, data: bytes, expected: int) -> bytes:
        try:
            return unpack_frame(data, expected, expected)
        except ValueError as error:
            raise CorruptCache(f"targets of a record: {error}") from error


PLUGIN = PlainCodec
