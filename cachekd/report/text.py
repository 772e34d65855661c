"""Amounts and settings as text."""

from __future__ import annotations

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


def text_of(value: Any) -> str:
    """A setting: lists and mappings in words, a long text by its beginning and its length."""
    if value is None or value in ({}, [], ()):
        return "none"
    if isinstance(value, Mapping):
        text = ", ".join(f"{key} {text_of(item)}" for key, item in value.items())
    elif isinstance(value, list | tuple):
        text = ", ".join(map(text_of, value))
    else:
        text = str(value)
    rest = len(text) - _MOST_LETTERS
    return text if rest <= 0 else f"{text[:_MOST_LETTERS]} ... ({rest:,} more letters)"
