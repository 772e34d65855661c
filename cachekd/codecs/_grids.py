"""Grids: how a log-probability is rounded, and the ascending integer code that stands for it.

    float16, float32   the bits of -logprob: nothing is lost beyond the dtype
    sqrt               levels uniform in sqrt(p): for a given rate the least KL at high rate, since
                       KL ~ sum p delta^2 / 24 asks for steps of log p that grow like p^-1/2
    log                levels uniform in nats
    counts             draws of a token, for captures that hold draws only

A code grows as the probability falls, so the codes of a head, best first, never fall. Levels lose
the scale of a row; the decode law gives it back: the head sums to one minus the tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cachekd.codecs import CodecHeader
from cachekd.errors import CorruptCache
from cachekd.types import Float32, Int64

_LOG_LIMIT = 65_535
_Bits = tuple[np.dtype[np.floating[Any]], np.dtype[np.unsignedinteger[Any]]]
_EXACT: dict[str, _Bits] = {
    "float16": (np.dtype("<f2"), np.dtype("<u2")),
    "float32": (np.dtype("<f4"), np.dtype("<u4")),
}


@dataclass(frozen=True, slots=True)
class Grid:
    """The rounding that a header names."""

    header: CodecHeader

    @property
    def exact(self) -> bool:
        """Whether values are kept to a dtype, scale included."""
        return self.header.values in _EXACT

    @property
    def sampled_code(self) -> int:
        """The code of entries that were sampled beside a head; above that of any head entry."""
        if self.exact:  # the bits of infinity
            return 0x7C00 if self.header.values == "float16" else 0x7F80_0000
        return self.top_level if self.header.values == "sqrt" else _LOG_LIMIT

    @property
    def top_level(self) -> int:
        """Level of probability 1 on the sqrt grid."""
        assert self.header.step is not None
        return round(1 / self.header.step)

    def encode(self, logprobs: Float32) -> Int64:
        """Codes of head entries, int64 [n]."""
        if self.exact:
            dtype, bits = _EXACT[self.header.values]
            # A teacher may mask tokens with huge negative logits: -inf would be no finite value.
            held = np.clip(logprobs, np.finfo(dtype).min, 0.0)
            return np.abs(held.astype(dtype)).view(bits).astype(np.int64)
        assert self.header.step is not None
        if self.header.values == "sqrt":
            level = np.rint(np.exp(logprobs.astype(np.float64) / 2) / self.header.step)
            return self.top_level - np.clip(level, 1, self.top_level).astype(np.int64)
        code = np.rint(-logprobs.astype(np.float64) / self.header.step)
        return np.clip(code, 0, _LOG_LIMIT - 1).astype(np.int64)

    def decode(self, codes: Int64) -> Float32:
        """Log-probabilities of codes below `sampled_code`; of levels, up to a factor a row."""
        if self.exact:
            dtype, bits = _EXACT[self.header.values]
            values: Float32 = 0 - codes.astype(bits).view(dtype).astype(np.float32)  # no -0.0
            return values
        assert self.header.step is not None
        if self.header.values == "sqrt":
            return self._centroids()[self.top_level - codes]
        return (-codes * self.header.step).astype(np.float32)

    def _centroids(self) -> Float32:
        """Log-probability of each level from 0 (unused): the mean of p within it.

        For a density of probabilities like p^-2, which is what Zipf's law gives, the mean over
        level l, from a = l - 1/2 to b = l + 1/2 steps of sqrt(p), is 2 ln(b/a) / (a^-2 - b^-2)
        steps squared. The middle of the bin would shrink the gradient of small probabilities.
        """
        assert self.header.step is not None
        a = np.arange(1, self.top_level + 1) - 0.5
        mean = 2 * np.log((a + 1) / a) / (a**-2 - (a + 1) ** -2)
        logs = np.log(mean) + 2 * np.log(self.header.step)
        return np.concatenate([[-np.inf], logs]).astype(np.float32)


def scaled(logs: Float32, codes: Int64, counts: Int64, row_x: Int64, tail: Float32) -> Float32:
    """Log-probs of runs of equal codes, with each row's head scaled to one minus its tail.

    Args:
        logs: log-probs of runs up to a factor a row.
        codes: their codes, which never fall within a row.
        counts: entries of each run that belong to the head.
        row_x: row of each run, ascending.
        tail: log tail mass of each row.

    A prior may cut the entries of one code into two runs: these are counted together before they
    are summed, so that the sum, down to its last bit, is the same under every prior.
    """
    if not len(codes):
        return logs
    new_row = np.diff(row_x, prepend=-1) != 0
    starts = np.flatnonzero(new_row | (np.diff(codes, prepend=-1) != 0))
    best = np.zeros(len(tail))
    best[row_x[new_row]] = logs[new_row]
    below = np.exp(logs[starts] - best[row_x[starts]])
    head = np.bincount(row_x[starts], np.add.reduceat(counts, starts) * below, len(tail))
    if ((head > 0) & (tail == 0)).any():
        raise CorruptCache("the tail of a row leaves no mass to its head")
    with np.errstate(divide="ignore", invalid="ignore"):  # rows without a head
        shift = np.log(-np.expm1(tail.astype(np.float64))) - np.log(head) - best
    whole: Float32 = np.minimum(logs + shift[row_x], 0.0).astype(np.float32)
    return whole
