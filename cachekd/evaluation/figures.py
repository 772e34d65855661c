"""A figure of an evaluation: mean and deviation over seeds, or why there is none.

In: a value for each seed (or one, where nothing is drawn). Out: a `Figure` of plain JSON types.
What was not measured is None with the reason; no value stands in for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, TypedDict

from cachekd.report.text import finite


class Figure(TypedDict):
    """One metric of one model.

    ``deviation`` is the sample standard deviation (ddof 1), None for a single value. ``why`` says
    why there is no mean, else None. ``parts`` are what the values were made of, seed by seed.
    """

    mean: float | None
    deviation: float | None
    values: list[float | None]
    why: str | None
    parts: dict[str, list[Any]]


def figure(
    values: Sequence[float],
    *,
    why: str = "the value is not finite",
    digits: int | None = None,
    **parts: list[Any],
) -> Figure:
    """The figure of some values; one that is not finite is a gap, and then there is no mean.

    Args:
        values: one a seed; nan or infinite where it could not be had.
        why: reason for a gap.
        digits: decimals that are told.
        parts: what the values were made of.
    """
    known = [value for value in values if math.isfinite(value)]
    whole = len(known) == len(values) and bool(values)
    if not whole and known:
        why = f"{why} ({len(known)} of {len(values)} seeds have it)"
    mean = fmean(known) if whole else None
    return Figure(
        mean=_rounded(mean, digits),
        deviation=_rounded(stdev(known), digits) if whole and len(known) > 1 else None,
        values=[_rounded(finite(v), digits) for v in values],
        why=None if whole else why,
        parts=parts,
    )


def gap(why: str) -> Figure:
    """A figure that was not measured at all."""
    return Figure(mean=None, deviation=None, values=[], why=why, parts={})


def _rounded(value: float | None, digits: int | None) -> float | None:
    return value if value is None or digits is None else round(value, digits)
