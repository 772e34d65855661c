"""Targets and students for objectives that choose among classes: all scalars true, next ids any."""

from __future__ import annotations

import torch
from fakes import sparse
from torch import Tensor

from cachekd.types import TargetTensors

V = 40


def logits(rows: int, seed: int = 0, width: float = 2.0, vocab: int = V) -> Tensor:
    """Random logits [rows, vocab] in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocab, generator=generator, dtype=torch.float64) * width


def targets_of(teacher_NV: Tensor, top_p: float = 1.0, seed: int = 0) -> TargetTensors:
    """Exact targets: true entropies, random next tokens, weights that differ, two documents."""
    targets, rows = sparse(teacher_NV, top_p=top_p), len(teacher_NV)
    log_p_NV = torch.log_softmax(teacher_NV.double(), 1)
    generator = torch.Generator().manual_seed(seed)
    next_ids = torch.randint(teacher_NV.shape[1], (rows,), generator=generator)
    return {
        **targets,
        "next_ids": next_ids,
        "next_logprob": log_p_NV.gather(1, next_ids[:, None])[:, 0],
        "entropy": torch.special.entr(log_p_NV.exp()).sum(1),
        "weights": torch.linspace(0.5, 1.5, rows, dtype=torch.float64),
        "document": (torch.arange(rows) >= rows // 2).long(),
    }


def single(targets: TargetTensors) -> TargetTensors:
    """The same in float32."""
    low = {
        name: value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in targets.items()
    }
    low["lognorm"] = {t: value.float() for t, value in targets["lognorm"].items()}
    return low  # type: ignore[return-value]


def inside(targets: TargetTensors, vocab: int = V) -> Tensor:
    """Which classes are entries, bool [N, V]."""
    counts = targets["offsets"].diff()
    found = torch.zeros(len(counts), vocab, dtype=torch.bool)
    found[torch.repeat_interleave(torch.arange(len(counts)), counts), targets["ids"]] = True
    return found


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Sum of p log(p/q) over the last axis; p may be 0."""
    ratio = p.clamp_min(1e-300).log() - q.clamp_min(1e-300).log()
    return torch.where(p > 0, p * ratio, torch.zeros_like(q)).sum(-1)
