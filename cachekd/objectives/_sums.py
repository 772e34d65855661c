"""Row terms to the sums that an objective returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cachekd.types import ObjectiveOutput

if TYPE_CHECKING:
    from torch import Tensor

    from cachekd.types import TargetTensors


def summed(
    targets: TargetTensors, terms: Sequence[tuple[float, Tensor]], metrics: Mapping[str, Tensor]
) -> ObjectiveOutput:
    """Weighted sums over rows.

    Args:
        targets: of the rows; ``weights`` counts.
        terms: factor of each term of the loss and its rows, [R]. A term without a factor is left
            out, not multiplied by 0: that would turn inf into nan.
        metrics: further rows, [R].
    """
    weights_R = targets["weights"].to(terms[0][1].dtype)
    loss_sum = weights_R.new_zeros(())
    for factor, rows_R in terms:
        if factor:
            loss_sum = loss_sum + factor * (weights_R * rows_R).sum()
    return ObjectiveOutput(
        loss_sum=loss_sum,
        weight_sum=weights_R.sum(),
        metrics={
            name: (weights_R * rows_R.detach().to(weights_R.dtype)).sum()
            for name, rows_R in metrics.items()
        },
    )
