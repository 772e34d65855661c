"""Attention of one document and layer to bytes and back: what both kinds share.

A layer is one zstd frame that states its content size and carries a checksum. The content is a
number of planes without padding, whose sizes follow from the capture's spec, the query rows and
the number of keys; see `_attention_maps` and `_attention_qk`. A decoder compares the stated size
with that before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import zstandard
from numpy.typing import NDArray

from cachekd.codecs._frames import unpack_frame
from cachekd.data import limits
from cachekd.errors import CorruptCache
from cachekd.types import Float32, Int32, Int64

LEVEL = 9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerRows:
    """Decoded attention of one layer: H heads x R query rows, ragged.

    Attributes:
        counts: kept keys of each row, int64 [H * R].
        keys: their positions, ascending in a row, int32 [n].
        probs: their probabilities, float32 [n].
        rest: mass of the causal keys that were not kept, float32 [H, R].
    """

    counts: Int64
    keys: Int32
    probs: Float32
    rest: Float32


def no_rows(heads: int) -> LayerRows:
    """A layer of a document of which no query row was captured."""
    nothing = np.zeros(0, dtype=np.int64)
    return LayerRows(
        counts=nothing,
        keys=nothing.astype(np.int32),
        probs=nothing.astype(np.float32),
        rest=np.zeros((heads, 0), dtype=np.float32),
    )


def pack(planes: Sequence[NDArray[np.generic]]) -> bytes:
    """Planes as one frame."""
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True)
    return compressor.compress(b"".join(plane.tobytes() for plane in planes))


def unpack(data: bytes, expected: int) -> bytes:
    """The content of a frame.

    Raises:
        CorruptCache: the frame is damaged, or states another size than ``expected`` bytes.
    """
    try:
        return unpack_frame(data, expected, expected)
    except ValueError as error:
        raise CorruptCache(f"a layer: {error}") from error


def check_weights(rows: Int32, heads: int) -> None:
    """Refuse a layer of more attention weights than are unpacked: a row t has one a key 0..t.

    Raises:
        CorruptCache: it has more.
    """
    weights = heads * (int(rows.sum(dtype=np.int64)) + len(rows))
    if weights > limits.LAYER_WEIGHTS:
        raise CorruptCache(
            f"a layer of {weights} attention weights; at most {limits.LAYER_WEIGHTS} are read"
        )


def ranges(counts: NDArray[np.integer]) -> Int64:
    """0, 1, ..., c-1 for each count c, one after another, int64 [sum of counts]."""
    ends = np.cumsum(counts, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.asarray(np.arange(total) - np.repeat(ends - counts, counts), dtype=np.int64)


def row_sums(values: NDArray[np.floating], counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Sum of each ragged row in float64, 0 for an empty one."""
    row_n = np.repeat(np.arange(len(counts)), counts)
    return np.asarray(np.bincount(row_n, values, len(counts)), dtype=np.float64)
