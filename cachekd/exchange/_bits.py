"""Bit-packed whole numbers of DistillKit: most significant bit first, rows padded to bytes.

Comes in and goes out: rows of numbers of ``bits`` bits each. The legacy form packs as many numbers
as fit into each 64-bit word, the first in the lowest bits.
"""

from __future__ import annotations

import numpy as np

from cachekd.types import Int64, UInt8

_CHUNK = 1 << 16


def width_of(vocab_size: int) -> int:
    """Bits of an id below ``vocab_size``."""
    return max(1, (vocab_size - 1).bit_length())


def bytes_for(count: int, bits: int) -> int:
    """Bytes of a row of numbers."""
    return (count * bits + 7) // 8


def unpack(packed_RB: UInt8, bits: int, count: int) -> Int64:
    """Numbers of rows of bytes, int64 [R, count]."""
    found_RK = np.empty((len(packed_RB), count), np.int64)
    if bits % 8 == 0:
        taken = packed_RB[:, : count * bits // 8].reshape(len(packed_RB), count, bits // 8)
        powers = 256 ** np.arange(bits // 8 - 1, -1, -1, dtype=np.int64)
        return np.asarray(taken.astype(np.int64) @ powers)
    # A number lies within the eight bytes that begin where its first bit is.
    padded_RB = np.pad(packed_RB, ((0, 0), (0, 8)))
    for place in range(count):
        first = place * bits
        word_R = padded_RB[:, first // 8 : first // 8 + 8].copy().view(">u8")[:, 0]
        found_RK[:, place] = (word_R >> np.uint64(64 - bits - first % 8)) & np.uint64(
            (1 << bits) - 1
        )
    return found_RK


def pack(values_RK: Int64, bits: int) -> UInt8:
    """Rows of numbers as bytes, uint8 [R, ceil(K * bits / 8)]."""
    rows, count = values_RK.shape
    places = np.arange(bits - 1, -1, -1)
    packed = np.empty((rows, bytes_for(count, bits)), np.uint8)
    step = max(1, _CHUNK // max(1, count))
    for start in range(0, rows, step):
        flat = (values_RK[start : start + step, :, None] >> places) & 1
        packed[start : start + step] = np.packbits(
            flat.astype(np.uint8).reshape(len(flat), -1), axis=1
        )
    return packed


def unpack_words(words_RW: np.ndarray, bits: int, count: int) -> Int64:
    """Numbers of rows of 64-bit words, int64 [R, count]."""
    each = 64 // bits
    shifts = np.arange(each, dtype=np.uint64) * np.uint64(bits)
    mask = np.uint64((1 << bits) - 1)
    found = (words_RW.astype(np.uint64)[:, :, None] >> shifts) & mask
    return found.reshape(len(words_RW), -1)[:, :count].astype(np.int64)
