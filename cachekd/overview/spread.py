"""How a figure is spread over many rows: mean, quantiles and a histogram, as plain JSON types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.report.bars import Histogram

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BINS = 40


def spread_of(values_N: NDArray[np.floating], edges: NDArray[np.floating]) -> dict[str, Any] | None:
    """Figures of N values, summed in float64; None without values.

    Args:
        values_N: finite values.
        edges: of the bins, ascending; values beyond the first and last edge count there.

    Returns:
        ``count``, ``mean``, ``deviation`` (of the values), ``least``, ``largest``, ``quantiles``
        (linear between values), ``edges`` and ``counts``.
    """
    if not len(values_N):
        return None
    values = values_N.astype(np.float64)
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    quantiles = np.quantile(values, QUANTILES)
    return {
        "count": len(values),
        "mean": float(values.mean()),
        "deviation": float(values.std()),
        "least": float(values.min()),
        "largest": float(values.max()),
        "quantiles": {f"{q:g}": float(v) for q, v in zip(QUANTILES, quantiles, strict=True)},
        "edges": [float(edge) for edge in edges],
        "counts": [int(count) for count in counts],
    }


def even_edges(values_N: NDArray[np.floating], low: float | None = None) -> NDArray[np.float64]:
    """Edges of equal bins from ``low``, or the least value, to the largest."""
    least = float(values_N.min(initial=0.0)) if low is None else low
    largest = float(values_N.max(initial=least))
    return np.linspace(least, largest if largest > least else least + 1.0, BINS + 1)


def count_edges(counts_N: NDArray[np.integer]) -> tuple[NDArray[np.float64], bool]:
    """Edges between whole numbers; wider and wider, for a log axis, where there are many.

    Returns:
        the edges, and whether the axis is logarithmic.
    """
    most = int(counts_N.max(initial=1))
    if most <= BINS * 2:
        return np.arange(0.5, most + 1.0), False
    wide = np.unique(np.round(np.geomspace(1, most + 1, BINS + 1)))
    return wide - 0.5, True


def histogram_of(
    spread: Mapping[str, Any] | None, title: str, x_label: str, *, log_x: bool = False
) -> Histogram:
    """The figure of a spread; without one it says that there is no data."""
    found = spread or {"edges": [1.0, 2.0], "counts": [0]}
    return Histogram(
        title=title,
        x_label=x_label,
        y_label="rows",
        edges=found["edges"],
        counts=found["counts"],
        log_x=log_x,
    )
