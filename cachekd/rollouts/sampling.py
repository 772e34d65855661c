"""The student writes: batches of prompts, token by token, with a cache of keys and values.

In: a model of transformers, prompts (padded on the left, with tokens that a response must begin
with), and a teacher to mix with. Out: responses of explicit lengths. A draw is the argmax of the
log-probabilities plus Gumbel noise that is a function of seed, prompt, number, position and token
alone (`cachekd.teachers._writing`): neither the batch nor a restart changes it, and a response that
is begun with forced tokens goes on with the draws that stand at its positions.

Teacher-mixed sampling (Gu et al., "MiniLLM", 2.2): both models step with their own keys and values,
and the token is drawn from p~ = alpha p + (1 - alpha) q, mixed after temperature, top-k and top-p.
"""

from __future__ import annotations

import gc
import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cachekd.errors import ConfigError, TeacherError
from cachekd.rollouts import Ask, Written
from cachekd.rollouts.batches import by_length
from cachekd.rollouts.modes import inference
from cachekd.rollouts.responses import DrawSpec, Responses
from cachekd.teachers._memory import one_memory_error
from cachekd.teachers._writing import shaped_logits


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mix:
    """A teacher that is part of what is drawn from, with the share alpha."""

    model: Any
    alpha: float


def write(
    model: Any,
    asks: Sequence[Ask],
    spec: DrawSpec,
    mix: Mix | None = None,
    told: Callable[[int], None] | None = None,
) -> list[Written]:
    """The response to each prompt.

    The model is in eval mode meanwhile, and nothing is differentiated.

    Args:
        model: the student, without wrappers.
        asks: prompts of at least one token each.
        spec: how.
        mix: a teacher of the same vocabulary, on any device.
        told: is told after each batch how many responses there are.

    Raises:
        ConfigError: a prompt is empty, or leaves no room in the model's context.
        TeacherError: a model gave NaN or infinite logits; says which of the two.
        MemoryError: out of memory for a single prompt.
    """
    models = [model] if mix is None or not mix.alpha else [model, mix.model]
    for ask in asks:
        _check_room(ask, spec, models)
    found: dict[int, Written] = {}
    with ExitStack() as modes:
        for one in models:
            modes.enter_context(inference(one))
        shares = [1.0] if len(models) == 1 else [1 - mix.alpha, mix.alpha] if mix else []
        lengths = [len(ask.input_ids) + spec.max_new_tokens for ask in asks]
        for places in by_length(lengths, spec.batch_tokens):
            written = _tried(models, shares, [asks[place] for place in places], spec)
            found.update(zip(places, written, strict=True))
            if told is not None:
                told(len(found))
    return [found[place] for place in range(len(asks))]


def _check_room(ask: Ask, spec: DrawSpec, models: Sequence[Any]) -> None:
    length = len(ask.input_ids)
    if not length:
        raise ConfigError("expected a prompt of at least one token; found none")
    for model in models:
        context = getattr(model.config, "max_position_embeddings", None)
        if isinstance(context, int) and length + spec.max_new_tokens > context:
            raise ConfigError(
                f"expected a prompt and {spec.max_new_tokens} new tokens within the context of "
                f"{context}; found a prompt of {length}. Lower --max-new-tokens, or leave out "
                "such prompts with --on-long skip"
            )


def _tried(
    models: Sequence[Any], shares: Sequence[float], asks: Sequence[Ask], spec: DrawSpec
) -> list[Written]:
    """What is written; where memory is short, of one half after the other."""
    try:
        with one_memory_error():
            return _write(models, shares, asks, spec)
    except MemoryError:
        if len(asks) == 1:
            raise
    gc.collect()
    half = len(asks) // 2
    parts = (asks[:half], asks[half:])
    return [text for part in parts for text in _tried(models, shares, part, spec)]


def _write(
    models: Sequence[Any], shares: Sequence[float], asks: Sequence[Ask], spec: DrawSpec
) -> list[Written]:
    rows = Responses(asks, spec, _device(models[0]))
    if rows.done():
        return rows.written()
    sides = [_Side(model) for model in models]
    ids_BT, mask_BT = rows.context()
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    while True:
        banned = rows.banned()
        logits = [side.step(ids_BT, mask_BT, positions_BT, spec, banned) for side in sides]
        tokens_B = rows.draw(_mixed(logits, shares))
        if rows.done():
            return rows.written()
        kept_B = rows.dropped() if all(side.selects for side in sides) else None
        if kept_B is not None:
            tokens_B, mask_BT, positions_BT = (
                values[kept_B] for values in (tokens_B, mask_BT, positions_BT)
            )
            for side in sides:
                side.keep(kept_B)
        ids_BT = tokens_B[:, None]
        mask_BT = torch.cat([mask_BT, torch.ones_like(ids_BT)], 1)
        # A row that is over writes on, unread, and need not have a place in the context for that.
        positions_BT = positions_BT[:, -1:] + rows.going()[:, None]


def _device(model: Any) -> torch.device:
    device: torch.device = model.get_input_embeddings().weight.device
    return device


def _mixed(logits: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Log-probabilities of what is drawn from, float32 [B, V], on the student's device."""
    sides = [torch.log_softmax(side_BV, -1).to(logits[0].device) for side_BV in logits]
    if len(sides) == 1:
        return sides[0]
    terms = [log_BV + math.log(share) for log_BV, share in zip(sides, shares, strict=True)]
    return torch.logaddexp(*terms)


class _Side:
    """A model with its own keys and values."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._past: Any = None
        self._device = _device(model)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._known = inspect.signature(base.forward).parameters
        for name in ("attention_mask", "past_key_values"):
            if name not in self._known:
                raise ConfigError(
                    f"{type(base).__name__} takes no {name}; a model that writes here keeps keys "
                    "and values, and tells prompts from their padding by a mask"
                )

    def step(
        self,
        ids_BT: Tensor,
        mask_BT: Tensor,
        positions_BT: Tensor,
        spec: DrawSpec,
        banned: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Logits of the last position without the banned tokens, shaped, float32 [B, V]."""
        inputs: dict[str, Any] = {
            "input_ids": ids_BT,
            "attention_mask": mask_BT,
            "position_ids": positions_BT,
        }
        inputs = {k: v.to(self._device) for k, v in inputs.items() if k in self._known}
        if "logits_to_keep" in self._known:
            inputs["logits_to_keep"] = 1
        output = self._model(**inputs, past_key_values=self._past, use_cache=True)
        self._past = output.past_key_values
        logits_BV = output.logits[:, -1, : spec.vocab_size].float()
        if not bool(logits_BV.amax(-1).isfinite().all()):
            raise TeacherError(
                f"{type(self._model).__name__} gave logits that are NaN or infinite while it "
                "wrote. Check its weights and dtype, or lower --learning-rate if it is the student"
            )
        if banned is not None:  # before temperature, top-k and top-p, as in transformers
            rows_n, tokens_n = (part.to(logits_BV.device) for part in banned)
            logits_BV = logits_BV.index_put((rows_n, tokens_n), logits_BV.new_tensor(-math.inf))
            if bool((logits_BV.amax(-1) == -math.inf).any()):
                raise ConfigError(
                    f"no_repeat_ngram_size: with {spec.no_repeat_ngram_size} no token of "
                    f"{spec.vocab_size} is left to go on with; raise it, or write fewer tokens"
                )
        return shaped_logits(logits_BV, spec.temperature, spec.top_k, spec.top_p)

    @property
    def selects(self) -> bool:
        """Whether some rows of its keys and values can be kept alone."""
        return hasattr(self._past, "batch_select_indices")

    def keep(self, rows_B: Tensor) -> None:
        """Forget the keys and values of all other rows."""
        assert self._past is not None, "there was a step"
        self._past.batch_select_indices(rows_B.to(self._device))
