"""How well a time a token is known, and how much of a peak of memory is chance.

In: amounts of steps or batches, and memory of processes that have loaded nothing. Out: relative
errors, and whether a figure is noisy.

    rate       = sum amounts / sum tokens
    error      = sqrt(n / (n - 1) * sum (amount - rate * tokens)^2) / sum amounts

is the standard error of a ratio of sums, over itself: lengths that differ from step to step do not
count as noise. What is told by a median has that of a median: 1.25 * 1.48 * the median deviation
from it / sqrt(n), over itself, for deviations that are normal.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from cachekd.costs.comparison.quantities import Quantity, gap, measured

NOISY_TIME = 0.05
"""Standard error from which on a time is called noisy: two of them are a tenth of it."""

NOISY_MEMORY = 0.1
"""Share of what a process took after its libraries from which on chance makes a peak noisy."""

_LEAST = 4
"""Steps from which on their spread says something."""


def rate(amounts: Sequence[float], tokens: Sequence[int]) -> float:
    """Of a token: the mean, which sums to what all of them take, disturbed ones too."""
    return sum(amounts) / sum(tokens)


def relative_error(amounts: Sequence[float], tokens: Sequence[int], what: str) -> Quantity:
    """Standard error of `rate` over itself; a gap where there are too few.

    Args:
        amounts: seconds of each.
        tokens: of each.
        what: what they are, in the plural.
    """
    count = len(amounts)
    if count < _LEAST:
        return gap(f"a spread takes {_LEAST} {what} at least; found {count}")
    usual = rate(amounts, tokens)
    squares = sum((a - usual * n) ** 2 for a, n in zip(amounts, tokens, strict=True))
    error = math.sqrt(count / (count - 1) * squares) / max(sum(amounts), 1e-12)
    return measured(error, "standard error of the mean time a token, over itself")


def median_error(rates: Sequence[float], what: str) -> Quantity:
    """Standard error of a median over itself; a gap where there are too few.

    Args:
        rates: of each.
        what: what they are, in the plural.
    """
    if len(rates) < _LEAST:
        return gap(f"a spread takes {_LEAST} {what} at least; found {len(rates)}")
    usual = statistics.median(rates)
    deviation = statistics.median(abs(one - usual) for one in rates)
    error = 1.25 * 1.48 * deviation / math.sqrt(len(rates)) / max(usual, 1e-12)
    return measured(error, "standard error of the median time a token, over itself")


def noisy(error: Quantity) -> bool:
    """Whether a time of this error is noisy; one whose error is not known is."""
    return error.value is None or error.value > NOISY_TIME


def noisy_peak(peak: int, bare: Sequence[int]) -> bool:
    """Whether chance is a large share of what a process took after its libraries.

    Args:
        peak: most memory that it had.
        bare: memory of processes that had imported the same libraries and nothing else: what
            these differ by is chance.
    """
    chance = max(bare) - min(bare)
    return chance > NOISY_MEMORY * max(peak - min(bare), 0)
