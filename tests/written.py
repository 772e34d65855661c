"""Text that a student wrote, made up: rollouts, and targets of batches with such rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cachekd.rollouts import Rollout
from cachekd.types import TargetTensors, TopKLogits


def rollout(
    sample: int = 0,
    prompt: int = 2,
    response: int = 3,
    *,
    rewards: Any = None,
    vocab: int = 40,
    corrections: tuple[int, ...] = (),
) -> Rollout:
    """A rollout with random targets; ``rewards`` sets log p - log q of its tokens."""
    random = np.random.default_rng(sample)
    old = -random.exponential(1, response).astype(np.float32)
    if rewards is None:
        rewards = random.normal(size=response)
    return Rollout(
        sample=sample,
        number=7 * sample,
        input_ids=random.integers(0, vocab, prompt + response).astype(np.int32),
        prompt_length=prompt,
        logits=_logits(random, prompt, old + np.asarray(rewards, np.float32), vocab),
        old_logprob=old,
        behaviour_logprob=old - np.float32(0.1),
        advantage=random.normal(size=response).astype(np.float32),
        corrections=corrections,
    )


def _logits(random: Any, prompt: int, log_p: Any, vocab: int) -> TopKLogits:
    """Random targets of a response whose tokens have these log-probabilities."""
    rows = prompt + len(log_p) - 1
    counts = np.where(np.arange(rows) < prompt - 1, 0, random.integers(1, 6, rows))
    ids = np.concatenate([random.permutation(vocab)[:count] for count in counts])
    return TopKLogits(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        ids=ids.astype(np.int32),
        logprobs=-random.exponential(2, len(ids)).astype(np.float32),
        weights=None,
        tail=np.where(counts > 2, -np.inf, -1.5).astype(np.float32),
        next_logprob=np.concatenate([np.zeros(prompt - 1), log_p]).astype(np.float32),
        lognorm={1.0: np.zeros(rows, np.float32), 2.0: random.random(rows).astype(np.float32)},
        entropy=random.random(rows).astype(np.float32),
        vocab_size=vocab,
    )


def marked(
    targets: TargetTensors, written_N: Tensor, *, scored: bool = False, seed: int = 0
) -> TargetTensors:
    """Targets of which the student wrote some rows, with all that a batch then says.

    Args:
        targets: of all rows.
        written_N: which rows the student wrote.
        scored: whether the other rows, the data's, keep the teacher's targets.
        seed: of log-probabilities and advantages.
    """
    result: Any = dict(targets) if scored else _unscored(targets, ~written_N)
    generator = torch.Generator().manual_seed(seed)
    old_N, mix_N, advantage_N = torch.randn(
        3, len(written_N), generator=generator, dtype=targets["weights"].dtype
    )
    weights_N = targets["weights"]
    parts = torch.where(written_N, weights_N[written_N].sum(), weights_N[~written_N].sum())
    result["student_text"] = written_N
    result["old_logprob"] = torch.where(written_N, old_N - 3, 0)
    result["behaviour_logprob"] = torch.where(written_N, old_N - 3 + 0.2 * mix_N, 0)
    result["advantage"] = torch.where(written_N, advantage_N, 0)
    result["part_scale"] = weights_N.sum() / parts
    return result  # type: ignore[no-any-return]


def _unscored(targets: TargetTensors, rows_N: Tensor) -> dict[str, Any]:
    """Rows that no teacher has seen, as a record holds them."""
    keep_n = torch.repeat_interleave(~rows_N, targets["offsets"].diff())
    counts_N = torch.where(rows_N, 0, targets["offsets"].diff())

    def zeroed(values_N: Tensor) -> Tensor:
        return torch.where(rows_N, torch.zeros_like(values_N), values_N)

    return {
        **targets,
        "offsets": torch.cat([counts_N.new_zeros(1), counts_N.cumsum(0)]),
        "ids": targets["ids"][keep_n],
        "logprobs": targets["logprobs"][keep_n],
        **{name: zeroed(targets[name]) for name in ("tail", "next_logprob", "entropy")},
        "lognorm": {t: zeroed(norm_N) for t, norm_N in targets["lognorm"].items()},
    }
