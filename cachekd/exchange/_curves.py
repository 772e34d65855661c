"""Curves of DistillKit over the places of a row's further entries, best first.

Comes in: coefficients of the terms of rows. Goes out: values of the entries. Sums of large terms
that nearly cancel are taken in double precision: in single precision the legacy curve, whose
coefficients reach 10^4, is off by 10^-3. Coefficients of half precision are the exception. There
the writer's residuals correct the curve as half precision has it, so each term and product is
rounded as the writer rounded it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.types import Float32

Term = int | str
"""A power, ``sqrt`` or ``exp``."""
Float64 = NDArray[np.float64]
_HALVES = ("float16", "bfloat16")
_SPECIAL: dict[str, Callable[[Any], Any]] = {"sqrt": np.sqrt, "exp": np.exp}


def curve(
    terms: Sequence[Term], count: int, *, normalized: bool, dtype: str = "float32"
) -> Float64:
    """Terms over ``count`` places, float64 [terms, count], as coefficients of a dtype want them.

    Args:
        terms: powers and special terms of the place.
        count: how many places.
        normalized: places lie evenly in 0 to 1; else they are 0, 1, 2, ...
        dtype: of the coefficients.
    """
    place_K = np.arange(count, dtype=np.float64)
    if normalized:
        place_K = _even(count, dtype)
    place_K = rounded(place_K, dtype) if dtype in _HALVES else place_K
    with np.errstate(over="ignore"):
        rows = [
            _SPECIAL[t](place_K) if isinstance(t, str) else _power(place_K, t, dtype) for t in terms
        ]
    stacked = np.stack(rows).astype(np.float64)
    return rounded(stacked, dtype) if dtype in _HALVES else stacked


def values_of(factors_RT: Float32, terms_TK: Float64, dtype: str = "float32") -> Float32:
    """Values of a curve, float32 [R, K], of coefficients [R, T] of a dtype."""
    factors = factors_RT.astype(np.float64)
    if dtype not in _HALVES:
        return (factors @ terms_TK).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        products_RTK = rounded(factors[:, :, None] * terms_TK, dtype)
        return rounded(products_RTK.sum(1), dtype).astype(np.float32)


def legacy_curve(degree: int, count: int, *, inverted: bool, root: bool) -> Float64:
    """Terms of the legacy curve over the places 1, 2, ..., float64 [terms, count]."""
    place_K = np.arange(1, count + 1, dtype=np.float64)
    powers = [place_K ** (-power if inverted else power) for power in range(degree + 1)]
    return np.stack([*powers, *([np.sqrt(place_K)] if root else [])])


def rounded(values: Any, dtype: str) -> Float64:
    """The nearest numbers of a dtype of half precision, as float64."""
    single = np.ascontiguousarray(values, np.float32)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return single.astype(np.float16).astype(np.float64)
    return (bfloat16_bits(single).astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def bfloat16_bits(values: Float32) -> NDArray[np.uint16]:
    """The nearest bfloat16 numbers, ties to even, as their sixteen bits."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4").astype(np.uint64)
    even = 0x7FFF + ((bits >> 16) & 1)
    return ((bits + even) >> 16).astype("<u2")


def _power(place_K: Float64, power: int, dtype: str) -> Float64:
    """A power of the places; the cube of bfloat16 is rounded on the way, as torch has it."""
    if power == 3 and dtype == "bfloat16":
        return rounded(place_K * place_K, dtype) * place_K
    return place_K**power


def _even(count: int, dtype: str) -> Float64:
    """Places from 0 to 1; of half precision, steps from the nearer end."""
    if dtype not in _HALVES or count < 2:
        return np.linspace(0, 1, count)
    step = rounded(1 / (count - 1), dtype)
    up_K = rounded(step * rounded(np.arange(count), dtype), dtype)
    return np.where(np.arange(count) < count // 2, up_K, rounded(1 - up_K[::-1], dtype))
