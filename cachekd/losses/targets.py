"""The teacher's side of a loss: stored targets decoded, at a temperature, and cut into chunks.

Decode law: the stored tail mass is authoritative and the stored head is rescaled to 1 - tail, so
that a divergence is 0, up to rounding, when the student equals the decoded target.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from cachekd.errors import ConfigError
from cachekd.losses.ragged import entry_rows, log1mexp, segment_logsumexp
from cachekd.types import TargetTensors

_OF_ENTRIES = frozenset({"ids", "logprobs", "entry_weights"})
_OF_ALL = frozenset({"unigram", "shapes"})


def decode_targets(targets: TargetTensors, temperature: float) -> tuple[Tensor, Tensor]:
    """Teacher log-probabilities at a temperature, by the decode law.

    At T = 1 the head is scaled to 1 - exp(tail). At another T the head is that one raised to 1/T
    and divided by the stored normaliser, and the tail is what is left to 1. Where the tail at T = 1
    is empty, or where rounding of stored values makes the head reach 1, the head is renormalised
    and the tail is empty.

    Args:
        targets: ragged targets of N rows with n entries.
        temperature: T above 0.

    Returns:
        Head log-probabilities [n] and tail log-masses [N], float32 (float64 if the stored ones
        are); a row's head and tail sum to 1.

    Raises:
        ConfigError: the normaliser of this temperature was not captured.
    """
    tail_N = targets["tail"].to(torch.promote_types(targets["tail"].dtype, torch.float32))
    head_n, row_n = targets["logprobs"].to(tail_N.dtype), entry_rows(targets["offsets"])
    with torch.no_grad():
        shift_N = log1mexp(tail_N) - segment_logsumexp(head_n, row_n, len(tail_N))
        head_n = head_n + shift_N[row_n]
        if temperature == 1.0:
            return head_n, tail_N
        head_n = head_n / temperature - _lognorm(targets, temperature).to(tail_N.dtype)[row_n]
        mass_N = segment_logsumexp(head_n, row_n, len(tail_N))
        full_N = (tail_N == -torch.inf) | (mass_N >= 0)
        head_n = torch.where(full_N[row_n], head_n - mass_N[row_n], head_n)
        rest_N = log1mexp(mass_N.clamp(max=0))
        return head_n, torch.where(full_N, torch.full_like(rest_N, -torch.inf), rest_N)


def estimate(targets: TargetTensors) -> Tensor:
    """p_hat of each entry of targets with samples, float32 [n]: exact heads and weights as stored.

    The stored tail mass is coarse beside sampled entries: to scale a head by it would bias it.
    """
    weights_n = targets["entry_weights"]
    return torch.where(weights_n == 0, targets["logprobs"].exp(), weights_n)


def take_rows(targets: TargetTensors, rows: slice, entries: slice, counted: int) -> TargetTensors:
    """Targets of some rows.

    Args:
        targets: targets of N rows.
        rows: which rows.
        entries: the entries that these rows own.
        counted: how many of them count; the weight of the others is set to 0.
    """

    def part(name: str, value: Any) -> Any:
        if name == "offsets":
            return value[rows.start : rows.stop + 1] - value[rows.start]
        if name == "lognorm":
            return {temperature: norm_N[rows] for temperature, norm_N in value.items()}
        return value if name in _OF_ALL else value[entries if name in _OF_ENTRIES else rows]

    taken = {name: part(name, value) for name, value in targets.items()}
    if counted < len(taken["weights"]):
        again = torch.zeros_like(taken["weights"][counted:])
        taken["weights"] = torch.cat([taken["weights"][:counted], again])
    return cast(TargetTensors, taken)


def _lognorm(targets: TargetTensors, temperature: float) -> Tensor:
    if temperature not in targets["lognorm"]:
        captured = ", ".join(f"{value:g}" for value in sorted(targets["lognorm"])) or "none"
        raise ConfigError(
            f"temperature {temperature:g} was not captured: the targets hold {captured}. "
            f"Train at one of these, or capture again with --temperatures {temperature:g}"
        )
    return targets["lognorm"][temperature]
