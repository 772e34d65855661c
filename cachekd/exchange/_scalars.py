"""Scalars of rows that a format stores itself: judged as `cachekd verify` judges those of a record.

Comes in: columns of stored rows. Goes out: the same at the rows that they are, which of them cannot
be, and targets that hold them. A tail that is no logarithm would train a student on nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from cachekd.exchange import Mask
from cachekd.types import Float32, Int64, TopKLogits

_NORM = "lognorm:"
_ABOVE = 1e-4  # by which rounding may lift a logarithm, as verify has it, or lower an entropy
_MASS_ERROR = 0.02  # of head and tail, as verify has it


def placed(
    values_R: Float32 | None, target_R: Int64, inside_R: Mask, rows: int, missing: float = np.nan
) -> Float32:
    """A column of stored rows at the rows that they are, float32 [rows]."""
    found_N = np.full(rows, missing, np.float32)
    if values_R is not None:
        found_N[target_R[inside_R]] = values_R[inside_R]
    return found_N


def impossible(columns: Mapping[str, Float32]) -> Mask:
    """Rows with a scalar that cannot be: NaN, a tail above 1, an entropy below 0, bool [rows]."""
    found_N = np.zeros(len(next(iter(columns.values()), ())), np.bool_)
    for name, values_N in columns.items():
        if name == "tail":
            found_N |= ~(values_N <= _ABOVE)  # -inf says that there is none
        else:
            found_N |= ~np.isfinite(values_N)
        if name == "entropy":
            found_N |= values_N < -_ABOVE
    return found_N


def disagreeing(tail_N: Float32, head_N: np.ndarray) -> Mask:
    """Rows whose head and stored tail are no mass of 1, bool [rows]."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(head_N + np.exp(tail_N.astype(np.float64)) - 1) > _MASS_ERROR)


def with_scalars(logits: TopKLogits, columns: Mapping[str, Float32]) -> TopKLogits:
    """Targets with the scalars that the format stores itself; 0 on rows without entries."""
    held_N = np.diff(logits.offsets) > 0
    own = {n: np.where(held_N, values, 0.0).astype(np.float32) for n, values in columns.items()}
    norms = {float(n[len(_NORM) :]): values for n, values in own.items() if n.startswith(_NORM)}
    return replace(
        logits,
        tail=own.get("tail", logits.tail),
        entropy=own.get("entropy", logits.entropy),
        lognorm={**logits.lognorm, **norms},
    )
