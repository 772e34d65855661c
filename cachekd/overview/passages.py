"""Passages where a teacher is least and most certain, found while records pass by.

In: records. Out: a few windows of tokens with the lowest, or the highest, mean entropy.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cachekd.types import Float32, Int32, Record

KEPT = 3
"""Passages of each kind, of different documents."""
_ROWS = 48
_ENOUGH = 24
_FEWEST = 8
_BEFORE = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """A stretch of a document.

    Attributes:
        number: of the sample in the cache.
        mean_entropy: over the captured rows that predict its tokens, nats.
        start: place of its first token in the document.
        ids: token ids, int32 [W].
        entropy, next_logprob, tail: of the row that predicts each token (nats, nats, mass outside
            the exact head), NaN where there is none, float32 [W].
        entries: kept token ids of that row, int32 [W].
    """

    number: int
    mean_entropy: float
    start: int
    ids: Int32
    entropy: Float32
    next_logprob: Float32
    tail: Float32
    entries: Int32


@dataclass(slots=True)
class Extremes:
    """The windows of lowest (or highest) mean entropy so far: one a document, one of a text.

    Turns of one conversation are documents that begin alike, so their windows may be the same text.
    """

    lowest: bool
    _held: list[tuple[float, bytes, bytes, Window]] = field(default_factory=list)

    def add(self, number: int, record: Record, captured: NDArray[np.bool_]) -> None:
        """Look at a record, of which these rows are captured, bool [L-1]."""
        if captured.sum() < _FEWEST:
            return
        start, stop, mean = _extreme(record, captured, self.lowest)
        rank, text = (
            mean if self.lowest else -mean,
            record.input_ids[start + 1 : stop + 1].tobytes(),
        )
        same = [held for held in self._held if record.key == held[1] or text == held[2]]
        if any(rank >= held[0] for held in same):
            return
        if not same and len(self._held) == KEPT and rank >= self._held[-1][0]:
            return
        self._held = [held for held in self._held if held not in same]
        one = (rank, record.key, text, _window(number, record, captured, start, stop, mean))
        bisect.insort(self._held, one, key=lambda held: held[:3])
        del self._held[KEPT:]

    def windows(self) -> tuple[Window, ...]:
        """The extreme one first."""
        return tuple(held[-1] for held in self._held)


def _extreme(record: Record, captured: NDArray[np.bool_], lowest: bool) -> tuple[int, int, float]:
    """Rows of the window, from and to before, and its mean entropy.

    Windows with few captured rows do not count, where the record has any with more.
    """
    width = min(_ROWS, len(captured))
    counts = _sums(captured.astype(np.float64), width)
    sums = _sums(np.where(captured, record.logits.entropy, 0).astype(np.float64), width)
    enough = counts >= min(_ENOUGH, counts.max())
    means = np.where(enough, sums / np.maximum(counts, 1), np.inf if lowest else -np.inf)
    start = int(means.argmin() if lowest else means.argmax())
    return start, start + width, float(means[start])


def _sums(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Sum of each ``width`` neighbours."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    sums: NDArray[np.float64] = total[width:] - total[:-width]
    return sums


def _window(
    number: int, record: Record, captured: NDArray[np.bool_], start: int, stop: int, mean: float
) -> Window:
    """The tokens that the rows predict, and a few before them."""
    first = max(0, start + 1 - _BEFORE)
    rows = np.arange(first, stop + 1) - 1  # row t predicts token t + 1
    known = (rows >= start) & captured[rows]
    logits = record.logits

    def placed(values: Float32) -> Float32:
        found: Float32 = np.where(known, values[rows], np.nan).astype(np.float32)
        return found

    return Window(
        number=number,
        mean_entropy=mean,
        start=first,
        ids=record.input_ids[first : stop + 1],
        entropy=placed(logits.entropy),
        next_logprob=placed(logits.next_logprob),
        tail=placed(np.exp(np.minimum(logits.tail, 0))),
        entries=np.where(known, np.diff(logits.offsets)[rows], 0).astype(np.int32),
    )
