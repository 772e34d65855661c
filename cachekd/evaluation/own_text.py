"""A student on its own text, beside a teacher: what on-policy distillation is to lower.

In: a student and a teacher in this process, prompts. Out: `OwnText`: the teacher's NLL of samples,
sequence reverse KL, divergences on the student's own contexts, length and diversity (METHODS of
DistiLLM, MiniLLM and GKD report these beside ROUGE-L). Divergences are over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cachekd.evaluation.ngrams import distinct
from cachekd.losses.reference import dense_divergence
from cachekd.rollouts import Ask, Written
from cachekd.rollouts.responses import DrawSpec
from cachekd.rollouts.sampling import write
from cachekd.types import Int32


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnText:
    """Figures of samples; nats.

    Attributes:
        samples: responses.
        length: mean tokens of a response, its end token among them.
        ended: share of responses that ended by themselves.
        distinct_4: share of distinct 4-grams among all of the responses' 4-grams.
        teacher_nll: -log p a token, mean over tokens.
        sequence_reverse_kl: mean over responses of sum_t log q - log p: unbiased for KL(q || p) of
            whole responses under the student's own sampling at temperature 1.
        divergences: mean over tokens of divergences of next-token distributions, by name.
    """

    samples: int
    length: float
    ended: float
    distinct_4: float
    teacher_nll: float
    sequence_reverse_kl: float
    divergences: dict[str, float]


def own_text(
    student: Any,
    teacher: Any,
    prompts: Sequence[Int32],
    draw: DrawSpec,
    names: dict[str, tuple[str, float]],
    number: int = 0,
) -> OwnText:
    """Let the student answer, and look at the answers with both models.

    Args:
        student: a model of transformers.
        teacher: one of the same vocabulary.
        prompts: token ids of each, int32 [P].
        draw: how the student writes.
        names: of each divergence the name of `cachekd.losses.choice.NAMES` and its weight.
        number: which draw it is; another gives other samples.
    """
    nothing = np.empty(0, np.int32)
    asks = [Ask(input_ids=ids, number=number, forced=nothing) for ids in prompts]
    written = write(student, asks, draw)
    sums = dict.fromkeys([*names, "teacher_nll", "sequence_reverse_kl"], 0.0)
    for ask, text in zip(asks, written, strict=True):
        log_q_NV, log_p_NV, next_N = _rows(student, teacher, ask, text, draw.vocab_size)
        taken = next_N[:, None]
        log_q_N, log_p_N = (x.gather(1, taken)[:, 0] for x in (log_q_NV, log_p_NV))
        sums["teacher_nll"] -= float(log_p_N.sum())
        sums["sequence_reverse_kl"] += float((log_q_N - log_p_N).sum())
        for key, (name, weight) in names.items():
            sums[key] += float(dense_divergence(name, log_p_NV.exp(), log_q_NV.exp(), weight).sum())
    tokens = sum(len(text.response) for text in written)
    return OwnText(
        samples=len(written),
        length=tokens / len(written),
        ended=sum(text.ended for text in written) / len(written),
        distinct_4=distinct([text.response for text in written], 4),
        teacher_nll=sums["teacher_nll"] / tokens,
        sequence_reverse_kl=sums["sequence_reverse_kl"] / len(written),
        divergences={name: sums[name] / tokens for name in names},
    )


def _rows(
    student: Any, teacher: Any, ask: Ask, text: Written, vocab_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of both at the rows of a response, float64 [n, V], and its tokens."""
    ids = torch.from_numpy(np.concatenate([ask.input_ids, text.response]).astype(np.int64))
    first = len(ask.input_ids) - 1
    found = []
    for model in (student, teacher):
        device = next(model.parameters()).device
        with torch.no_grad():
            logits_TV = model(input_ids=ids[None].to(device), use_cache=False).logits[0]
        own_NV = logits_TV[first:-1, :vocab_size].double().cpu()
        found.append(torch.log_softmax(own_NV, -1))
    return found[0], found[1], ids[first + 1 :]
