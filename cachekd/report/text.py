"""Amounts and settings as text, and numbers as JSON has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_MOST_LETTERS = 160


def amount(size: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def counted(count: float, noun: str) -> str:
    """So many of something: 1 student, 2 students, 1.5 students."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {noun}{'' if count == 1 else 's'}"


def three_digits(value: float) -> str:
    """A figure to three digits; a large one to its ones."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def text_of(value: Any) -> str:
    """A setting in words: lists and mappings without their signs."""
    if value is None or value in ({}, [], ()):
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text_of(item)}" for key, item in value.items())
    return ", ".join(map(text_of, value)) if isinstance(value, list | tuple) else str(value)


def short(text: str, most: int = _MOST_LETTERS) -> str:
    """A long text by its beginning and how much more there is."""
    rest = len(text) - most
    return text if rest <= 0 else f"{text[:most]} ... ({rest:,} more letters)"


def finite(value: Any) -> float | None:
    """A number that JSON has; None for NaN, an infinity, and what is no number."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if known and math.isfinite(value) else None
