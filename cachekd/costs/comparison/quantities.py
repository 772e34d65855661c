"""A quantity and where it is from: measured, extrapolated by a formula, given, or a marked gap.

In: a number, or why there is none. Out: `Quantity`, which goes to JSON as it is. Whatever is
computed of a gap is a gap for the same reason: no figure is made up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A number with its origin.

    Attributes:
        value: the number, or None for a gap or where it is never reached.
        kind: measured, extrapolated, given (a setting of the user's), never (no number has the
            property that is asked for) or gap.
        how: of an extrapolated figure its formula, of a gap its reason, of a measured one what was
            measured if that is not plain.
    """

    value: float | None
    kind: str
    how: str = ""

    @property
    def known(self) -> float:
        """The number of a figure that is no gap."""
        assert self.value is not None, "asked of figures that are known"
        return self.value

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        plain: dict[str, Any] = {"value": self.value, "kind": self.kind}
        return plain | ({"how": self.how} if self.how else {})


def measured(value: float, how: str = "") -> Quantity:
    """A figure that was measured in this run."""
    return Quantity(value=value, kind="measured", how=how)


def given(value: float) -> Quantity:
    """A setting of the user's."""
    return Quantity(value=value, kind="given")


def gap(why: str) -> Quantity:
    """A figure that cannot be had."""
    return Quantity(value=None, kind="gap", how=f"not measured: {why}")


def never(why: str) -> Quantity:
    """There is no such number."""
    return Quantity(value=None, kind="never", how=why)


def extrapolated(formula: str, make: Callable[..., float], *of: Quantity) -> Quantity:
    """What a formula makes of other figures; a gap where one of them is a gap.

    Args:
        formula: shown beside the figure.
        make: called with the values of ``of``.
        of: what the formula is of.
    """
    for figure in of:
        if figure.value is None:
            return Quantity(value=None, kind="gap", how=figure.how)
    return Quantity(value=make(*(f.known for f in of)), kind="extrapolated", how=formula)
