"""A quantity and where it is from: measured, extrapolated by a formula, or a marked gap.

In: a number, or why there is none. Out: `Quantity`, which goes to JSON as it is. Whatever is
computed of a gap is a gap for the same reason: no number is made up.
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
        kind: measured, extrapolated, never (no number has the property that is asked for) or gap.
        how: of an extrapolated one its formula, of a gap its reason, of a measured one what was
            measured if that is not plain.
        noisy: whether it would come out otherwise if it were measured again; see `spread`. What
            follows from a noisy one is noisy.
    """

    value: float | None
    kind: str
    how: str = ""
    noisy: bool = False

    @property
    def known(self) -> float:
        """The number, of a quantity that has one."""
        assert self.value is not None, "asked of quantities that are known"
        return self.value

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        plain: dict[str, Any] = {"value": self.value, "kind": self.kind}
        plain |= {"how": self.how} if self.how else {}
        return plain | ({"noisy": True} if self.noisy else {})


Quantities = dict[str, Quantity]
"""By name."""


def measured(value: float, how: str = "", *, noisy: bool = False) -> Quantity:
    """A quantity that was measured in this run."""
    return Quantity(value=value, kind="measured", how=how, noisy=noisy)


def gap(why: str) -> Quantity:
    """A quantity that cannot be had."""
    return Quantity(value=None, kind="gap", how=f"not measured: {why}")


def never(why: str) -> Quantity:
    """There is no such number."""
    return Quantity(value=None, kind="never", how=why)


def extrapolated(formula: str, make: Callable[..., float], *of: Quantity) -> Quantity:
    """What a formula makes of other quantities; a gap where one of them is a gap.

    Args:
        formula: shown beside the value.
        make: called with the values of ``of``.
        of: what the formula is of.
    """
    for quantity in of:
        if quantity.value is None:
            return Quantity(value=None, kind="gap", how=quantity.how)
    return Quantity(
        value=make(*(f.known for f in of)),
        kind="extrapolated",
        how=formula,
        noisy=any(quantity.noisy for quantity in of),
    )
