"""Writing responses: the next token of each row, and a model of transformers that goes on so.

Comes in: prompts and a `WritingSpec`. Goes out: token ids. A draw is the argmax of the logits plus
Gumbel noise (the Gumbel-max trick; Maddison et al., "A* Sampling", 2014), and the noise is a
function of the seed, the prompt, the number of the response, the step and the token alone:
SplitMix64 over a counter. So neither the batch nor an interruption changes a draw, and rounding in
the logits changes it only where the two best noisy values are equal to rounding.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cachekd.data.digests import sample_key
from cachekd.errors import TeacherError
from cachekd.teachers import PromptDraw, WritingSpec
from cachekd.types import Int32

# SplitMix64 (Steele, Lea and Flood, 2014) in two's complement.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


class Drawn(Protocol):
    """A prompt and which of the responses to it is drawn."""

    @property
    def input_ids(self) -> Int32:
        """Tokens of the prompt."""

    @property
    def number(self) -> int:
        """Of the response."""


def stream_seeds(prompts: Sequence[Drawn], seed: int) -> Tensor:
    """Where the noise of each response begins, int64 [B]."""
    return torch.tensor([_stream(prompt, seed) for prompt in prompts], dtype=torch.int64)


def _stream(prompt: Drawn, seed: int) -> int:
    packed = sample_key(prompt.input_ids) + struct.pack("<qq", prompt.number, seed)
    digest = hashlib.blake2b(packed, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def next_tokens(logits_BV: Tensor, seeds_B: Tensor, step: int, spec: WritingSpec) -> Tensor:
    """The token that each row goes on with, int64 [B].

    Args:
        logits_BV: of the last position; what lies beyond the vocabulary does not count.
        seeds_B: what `stream_seeds` gave, on the device of the logits.
        step: tokens that were written before.
        spec: greedy, or what is drawn from.

    Raises:
        TeacherError: logits are NaN or infinite.
    """
    logits_BV = logits_BV[:, : spec.vocab_size].float()
    best_B, ids_B = logits_BV.max(dim=-1)
    if not bool(best_B.isfinite().all()):
        raise TeacherError("the teacher gave logits that are NaN or infinite while it wrote")
    if spec.greedy:
        return ids_B
    logits_BV = shaped_logits(logits_BV, spec.temperature, spec.top_k, spec.top_p)
    steps_B = torch.full_like(seeds_B, step)
    return (gumbel(seeds_B, steps_B, logits_BV.shape[-1]).add_(logits_BV)).argmax(dim=-1)


def shaped_logits(logits_BV: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Logits of what is drawn from, shaped in the order of transformers."""
    warpers: list[Any] = []
    if temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(temperature))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        warpers.append(TopPLogitsWarper(top_p))
    for warper in warpers:
        logits_BV = warper(None, logits_BV)
    return logits_BV


def gumbel(seeds_B: Tensor, steps_B: Tensor, width: int) -> Tensor:
    """Standard Gumbel noise of each row and token, float64 [B, V].

    Args:
        seeds_B: where the noise of each response begins.
        steps_B: tokens that each row has written before.
        width: tokens that are drawn from.
    """
    counter_V = torch.arange(1, width + 1, dtype=torch.int64, device=seeds_B.device)
    state_BV = (steps_B[:, None] * width + counter_V).mul_(_GAMMA).add_(seeds_B[:, None])
    state_BV.bitwise_xor_(_shifted(state_BV, 30)).mul_(_FIRST)
    state_BV.bitwise_xor_(_shifted(state_BV, 27)).mul_(_SECOND)
    state_BV.bitwise_xor_(_shifted(state_BV, 31))
    uniform_BV = _shifted(state_BV, 11).double().add_(0.5).mul_(2.0**-53)
    return uniform_BV.log_().neg_().log_().neg_()


def _shifted(state_BV: Tensor, bits: int) -> Tensor:
    """A logical shift to the right."""
    return (state_BV >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def finished(tokens: Sequence[int], spec: WritingSpec) -> Int32:
    """Tokens up to the first end token, with it, and at most so many as were asked for."""
    tokens = tokens[: spec.max_new_tokens]
    ends = [place for place, token in enumerate(tokens) if token in spec.end_tokens]
    return np.array(tokens[: ends[0] + 1] if ends else tokens, np.int32)


class _Choose(LogitsProcessor):  # type: ignore[misc]
    """Leaves nothing but the token that `next_tokens` takes."""

    def __init__(self, seeds_B: Tensor, padded: int, spec: WritingSpec) -> None:
        self._seeds_B, self._padded, self._spec = seeds_B, padded, spec

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        seeds_B = self._seeds_B.to(scores.device)
        ids_B = next_tokens(scores, seeds_B, input_ids.shape[1] - self._padded, self._spec)
        only_BV = torch.full_like(scores, -torch.inf)
        return only_BV.scatter_(1, ids_B[:, None], 0.0)


def write_with(
    model: Any, device: torch.device, prompts: Sequence[PromptDraw], spec: WritingSpec
) -> list[Int32]:
    """Responses of a causal model of transformers; prompts are padded on the left and masked."""
    padded = max(len(prompt.input_ids) for prompt in prompts)
    pad = spec.end_tokens[0] if spec.end_tokens else 0
    ids_BT = np.full((len(prompts), padded), pad, dtype=np.int64)
    mask_BT = np.zeros_like(ids_BT)
    for b, prompt in enumerate(prompts):
        ids_BT[b, padded - len(prompt.input_ids) :] = prompt.input_ids
        mask_BT[b, padded - len(prompt.input_ids) :] = 1
    # Settings that the model brings along (penalties, a temperature) fill whatever is not said.
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=spec.max_new_tokens,
        eos_token_id=list(spec.end_tokens) or None,
        pad_token_id=pad,
        use_cache=True,
    )
    for part in (model, model.get_base_model() if hasattr(model, "get_base_model") else model):
        part.generation_config = settings
    written_BT = model.generate(
        generation_config=settings,
        input_ids=torch.from_numpy(ids_BT).to(device),
        attention_mask=torch.from_numpy(mask_BT).to(device),
        logits_processor=LogitsProcessorList(
            [_Choose(stream_seeds(prompts, spec.seed).to(device), padded, spec)]
        ),
    )
    return [finished(row, spec) for row in written_BT[:, padded:].tolist()]
