"""The scalars of rows as streams: exact beside exact heads, else in fixed point.

Order: log tail mass, log-prob of the next token, entropy, then a log-normaliser a temperature.

    exact      the bits of each float32
    tail       fixed: the log-odds of the tail mass in 253 steps; 0: none, 254: all
    next       fixed: rint(-64 x)
    entropy    fixed: rint(64 x)
    lognorm    fixed: rint(256 x), sign in the lowest bit

Targets with levels, or with sampled entries, are rounded or noisy themselves; theirs are fixed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cachekd.codecs import CodecHeader
from cachekd.codecs._grids import Grid
from cachekd.codecs._streams import Stream
from cachekd.errors import CorruptCache
from cachekd.types import Float32, TopKLogits

# Log-odds of the codes 1 and 253: masses of 1e-6 and of 0.9975.
_LOWEST, _HIGHEST = -13.8, 6.0
_CODES = 253
_ALL = 254
_NEXT, _ENTROPY, _LOGNORM = 64.0, 64.0, 256.0
_LIMIT = float(2**31)


def exact_scalars(header: CodecHeader) -> bool:
    """Whether scalars are kept to the bit."""
    return Grid(header).exact and not header.samples and not header.tau


def scalar_streams(header: CodecHeader) -> int:
    """Number of streams."""
    return 3 + len(header.temperatures)


def pack_scalars(targets: TopKLogits, header: CodecHeader) -> list[Stream]:
    """Streams of a document's scalars."""
    lognorm = [targets.lognorm[t] for t in header.temperatures]
    if exact_scalars(header):
        scalars = [targets.tail, targets.next_logprob, targets.entropy, *lognorm]
        return [values.astype("<f4").view("<u4") for values in scalars]
    return [
        _tail_codes(targets.tail, _head_counts(targets, header)),
        _fixed(-targets.next_logprob, _NEXT),
        _fixed(targets.entropy, _ENTROPY),
        *(_signed(values) for values in lognorm),
    ]


def unpack_scalars(parts: Sequence[Sequence[Stream]], header: CodecHeader) -> list[Float32]:
    """Values of the streams of several documents, one after another, float32.

    Raises:
        CorruptCache: a code stands for nothing.
    """
    streams = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    if exact_scalars(header):
        values = [stream.astype(np.uint32).view(np.float32) for stream in streams]
        if not all((value < np.inf).all() for value in values):
            raise CorruptCache("a scalar of a record is NaN or infinite")
        return values
    tail, following, entropy, *lognorm = streams
    if tail.max(initial=0) > _ALL:
        raise CorruptCache("a tail of a record has no such code")
    return [
        _TAILS[tail.astype(np.int64)],
        (0.0 - following.astype(np.float64) / _NEXT).astype(np.float32),
        (entropy.astype(np.float64) / _ENTROPY).astype(np.float32),
        *(_unsigned(codes.astype(np.int64)) for codes in lognorm),
    ]


def _head_counts(targets: TopKLogits, header: CodecHeader) -> NDArray[np.int64]:
    """Entries of each row that are not sampled."""
    counts = np.diff(targets.offsets)
    if header.samples:
        return np.zeros_like(counts)
    if targets.weights is None:
        return counts
    rows_n = np.repeat(np.arange(len(counts)), counts)
    return np.bincount(rows_n[targets.weights == 0], minlength=len(counts))


def _tail_codes(tail: Float32, head: NDArray[np.int64]) -> Stream:
    """Codes of tails; a head is never left without mass."""
    mass = np.exp(np.minimum(tail.astype(np.float64), 0.0))
    with np.errstate(divide="ignore"):
        odds = np.log(mass) - np.log1p(-mass)
    step = (_HIGHEST - _LOWEST) / (_CODES - 1)
    inner = np.clip(np.nan_to_num(odds), _LOWEST, _HIGHEST)
    codes = 1 + np.rint((inner - _LOWEST) / step).astype(np.int64)
    whole = (mass == 1) & (head == 0)
    return np.where(mass == 0, 0, np.where(whole, _ALL, codes)).astype(np.uint8)


def _tails() -> Float32:
    odds = np.linspace(_LOWEST, _HIGHEST, _CODES)
    return np.concatenate([[-np.inf], -np.log1p(np.exp(-odds)), [0.0]]).astype(np.float32)


_TAILS = _tails()


def _fixed(values: Float32, scale: float) -> Stream:
    return np.rint(np.clip(values.astype(np.float64) * scale, 0, _LIMIT)).astype(np.int64)


def _signed(values: Float32) -> Stream:
    whole = np.rint(np.clip(values.astype(np.float64) * _LOGNORM, -_LIMIT / 2, _LIMIT / 2 - 1))
    codes = whole.astype(np.int64)
    return np.where(codes < 0, -2 * codes - 1, 2 * codes)


def _unsigned(codes: NDArray[np.int64]) -> Float32:
    whole = np.where(codes & 1, -(codes + 1) // 2, codes // 2)
    return (whole / _LOGNORM).astype(np.float32)
