"""How close a model is to a cached teacher on held-out text; no Trainer, no gradient.

In: a model and a cache. Out: exact means over all rows: forward KL with tail bucket (or the
unbiased estimate from sampled entries), cross entropy, and the model's mass outside the teacher's
heads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from cachekd.data.alignment import LossMask
from cachekd.objectives import build
from cachekd.rollouts.batches import by_length
from cachekd.rollouts.modes import inference
from cachekd.teachers._memory import one_memory_error, release
from cachekd.training.collate import Collator
from cachekd.training.head import StudentHead
from cachekd.training.loader import CacheDataset
from cachekd.training.loss import batch_loss

if TYPE_CHECKING:
    from cachekd.store.reader import Cache
    from cachekd.types import ObjectiveOutput, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Means over the rows of a cache, in nats.

    Attributes:
        kl: KL(teacher || model) with a tail bucket, at the temperature, without T^2.
        ce: cross entropy of the actual next token at temperature 1.
        tail_mass: model's probability outside the teacher's head, at the temperature.
        rows: rows that the means are over.
        cut: documents that lost their end, of those.
        left_out: documents without a row that counts, some for what they lost.
    """

    kl: float
    ce: float
    tail_mass: float
    rows: int
    cut: int
    left_out: int


def heldout_kl(
    model: Any,
    cache: Cache | str | os.PathLike[str],
    *,
    temperature: float = 1.0,
    loss_mask: LossMask = LossMask.AUTO,
    batch_tokens: int = 16384,
    max_length: int | None = None,
) -> HeldOut:
    """Exact means of a model over the rows of a cache, each row counted with its weight.

    Args:
        model: a causal language model of transformers, used where it is, in eval mode.
        cache: an open cache or its location.
        temperature: of the KL and the tail mass; it must have been captured.
        loss_mask: which rows count.
        batch_tokens: token budget of a batch (documents x longest).
        max_length: documents are cut to this many tokens.

    Raises:
        ConfigError: no row is left, or the temperature was not captured.
        MemoryError: out of memory for a single document.
    """
    dataset = CacheDataset(cache, loss_mask=loss_mask, max_length=max_length)
    collate, device = Collator(loss_mask), next(model.parameters()).device
    objective = build("kd", {"temperature": temperature})
    totals = torch.zeros(5, dtype=torch.float64)
    with inference(model):
        head = StudentHead(model, model)

        def sums(records: Sequence[Record]) -> torch.Tensor:
            batch = _to(device, collate(records))
            output = batch_loss(model, head, batch, objective, dataset.vocab_size)
            return _sums(output, len(batch["rows"]))

        for places in by_length(dataset.lengths.tolist(), batch_tokens):
            totals += _tried(sums, dataset.records(places))
    kl, ce, mass = (totals[:3] / totals[3]).tolist()
    counts = {"cut": dataset.truncated, "left_out": sum(dataset.dropped.values())}
    return HeldOut(kl=kl, ce=ce, tail_mass=mass, rows=int(totals[4]), **counts)


def _tried(
    sums: Callable[[Sequence[Record]], torch.Tensor], records: Sequence[Record]
) -> torch.Tensor:
    """The sums of some documents; where memory is short, of one half after the other."""
    try:
        with one_memory_error():
            return sums(records)
    except MemoryError:
        if len(records) == 1:
            raise
    release()
    half = len(records) // 2
    return _tried(sums, records[:half]) + _tried(sums, records[half:])


def _sums(output: ObjectiveOutput, rows: int) -> torch.Tensor:
    """What the means are made of: the sums, of the weights too, and the rows; float64 [5]."""
    columns = [output.metrics[name] for name in ("kl", "ce", "tail_mass")]
    found = torch.stack([*columns, output.weight_sum]).double().cpu()
    return torch.cat([found, found.new_tensor([rows])])


def _to(device: torch.device, value: Any) -> Any:
    """A batch with all its tensors on a device."""
    if isinstance(value, dict):
        return {key: _to(device, part) for key, part in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value
