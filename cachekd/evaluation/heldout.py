"""How close a model is to a cached teacher on held-out text; no Trainer, no gradient.

In: a model and a cache. Out: exact means over all rows: forward KL with tail bucket (or the
unbiased estimate from sampled entries), cross entropy, and the model's mass outside the teacher's
heads.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from cachekd.data.alignment import LossMask
from cachekd.objectives import build
from cachekd.training.collate import Collator
from cachekd.training.head import StudentHead
from cachekd.training.loader import CacheDataset
from cachekd.training.loss import batch_loss

if TYPE_CHECKING:
    from cachekd.store.reader import Cache
    from cachekd.types import ObjectiveOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Means over the rows of a cache, in nats.

    Attributes:
        kl: KL(teacher || model) with a tail bucket, at the temperature, without T^2.
        ce: cross entropy of the actual next token at temperature 1.
        tail_mass: model's probability outside the teacher's head, at the temperature.
        rows: rows that the means are over.
    """

    kl: float
    ce: float
    tail_mass: float
    rows: int


def heldout_kl(
    model: Any,
    cache: Cache | str | os.PathLike[str],
    *,
    temperature: float = 1.0,
    loss_mask: LossMask = LossMask.AUTO,
    batch_size: int = 8,
    max_length: int | None = None,
) -> HeldOut:
    """Exact means of a model over the rows of a cache, each row counted with its weight.

    Args:
        model: a causal language model of transformers, used where it is, in eval mode.
        cache: an open cache or its location.
        temperature: of the KL and the tail mass; it must have been captured.
        loss_mask: which rows count.
        batch_size: documents at a time.
        max_length: documents are cut to this many tokens.

    Raises:
        ConfigError: no row is left, or the temperature was not captured.
    """
    dataset = CacheDataset(cache, loss_mask=loss_mask, max_length=max_length)
    collate, training = Collator(loss_mask), model.training
    device = next(model.parameters()).device
    totals, rows = torch.zeros(4, dtype=torch.float64), 0
    objective = build("kd", {"temperature": temperature})
    model.eval()
    try:
        head = StudentHead(model, model)
        for start in range(0, len(dataset), batch_size):
            chosen = range(start, min(start + batch_size, len(dataset)))
            batch = _to(device, collate([dataset.record(i) for i in chosen]))
            with torch.no_grad():
                totals += _sums(batch_loss(model, head, batch, objective, dataset.vocab_size))
            rows += len(batch["rows"])
    finally:
        model.train(training)
    kl, ce, mass = (totals[:3] / totals[3]).tolist()
    return HeldOut(kl=kl, ce=ce, tail_mass=mass, rows=rows)


def _sums(output: ObjectiveOutput) -> torch.Tensor:
    columns = [output.metrics[name] for name in ("kl", "ce", "tail_mass")]
    return torch.stack([*columns, output.weight_sum]).double().cpu()


def _to(device: torch.device, value: Any) -> Any:
    """A batch with all its tensors on a device."""
    if isinstance(value, dict):
        return {key: _to(device, part) for key, part in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value
