"""Forward KL to a cached teacher, by the estimator that fits what was captured.

Exact heads take a bucket or a model for their tail; sampled entries take the unbiased estimate.
"""

from __future__ import annotations

from torch import Tensor

from cachekd.errors import ConfigError
from cachekd.losses.divergences import ForwardKL, forward_kl
from cachekd.losses.sampled import sampled_forward_kl
from cachekd.losses.tails import modelled_forward_kl
from cachekd.types import TargetTensors


def teacher_kl(
    logits_NV: Tensor, targets: TargetTensors, temperature: float = 1.0, tail: str = "bucket"
) -> ForwardKL:
    """KL(teacher || student) of each row, without the factor T^2.

    Args:
        logits_NV: student logits over the real vocabulary.
        targets: ragged targets of the same N rows.
        temperature: T above 0.
        tail: bucket, or a model of `cachekd.losses.tails`.

    Raises:
        ConfigError: the targets do not serve this temperature or tail; says what would.
    """
    if targets.get("entry_weights") is not None:
        if tail != "bucket":
            raise ConfigError(
                f"tail {tail!r}: sampled entries stand for the tail already; use --tail bucket"
            )
        return sampled_forward_kl(logits_NV, targets, temperature)
    if tail == "bucket":
        return forward_kl(logits_NV, targets, temperature)
    return modelled_forward_kl(logits_NV, targets, temperature, tail)
