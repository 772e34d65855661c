"""Kinds of values that flags take beside those of click: pairs, numbers, fractions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import click


class Pairs(click.ParamType[dict[str, Any]]):
    """``KEY=VALUE``, or several with commas between them."""

    name = "key=value"

    def __init__(self, number: bool) -> None:
        self._number = number

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        """The mapping that a text stands for."""
        if isinstance(value, dict):
            return value
        pairs: dict[str, Any] = {}
        for part in str(value).split(","):
            key, equals, text = part.partition("=")
            if not equals:
                self.fail(f"expected KEY=VALUE; found {part!r}", param, ctx)
            try:
                pairs[key.strip()] = float(text) if self._number else text.strip()
            except ValueError:
                self.fail(f"{key}: expected a number; found {text!r}", param, ctx)
        return pairs


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between them: whole ones (``kind`` int) or any."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """The tuple that a text stands for."""
        try:
            parts = value.split(",") if isinstance(value, str) else value
            return tuple(self._kind(part) for part in parts)
        except (TypeError, ValueError):
            whole = "whole " if self._kind is int else ""
            self.fail(
                f"expected {whole}numbers with commas between them; found {value!r}", param, ctx
            )


class Number(click.ParamType[float]):
    """A number, or a fraction such as ``1/24``."""

    name = "float"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number that a text stands for."""
        number = number_of(value) if isinstance(value, str) else value
        if not isinstance(number, int | float):
            self.fail(f"expected a number; found {value!r}", param, ctx)
        return float(number)


class Share(click.ParamType[float]):
    """A share above 0 and at most 1: ``5%``, ``0.05`` or ``1/20``."""

    name = "share"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number that a text stands for."""
        text = str(value).strip()
        share = number_of(text.removesuffix("%"))
        if isinstance(share, float) and text.endswith("%"):
            share /= 100
        if not isinstance(share, float) or not 0 < share <= 1:
            near = f"; did you mean {text}%?" if isinstance(share, float) and share > 1 else ""
            self.fail(
                f"expected a share above 0 and at most 100%, such as 5% or 0.05; found {text!r}"
                + (near if not text.endswith("%") else ""),
                param,
                ctx,
            )
        return share


def number_of(text: str) -> Any:
    """A number or fraction; what is neither stays text."""
    try:
        return float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        return text
