"""The student's head, and a loss fused with it inside the model's own forward pass.

In: a model of transformers and a function of last hidden states. Out: what the function returns,
called where the model would have made logits, so that the head's weights are there even where they
are sharded between uses (FSDP2, DeepSpeed). What a model does to its logits afterwards (scale, soft
cap) is read from its configuration and proven on a small batch; a model for which that proof fails
makes whole logits, and a warning says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cachekd.losses.head import Head
from cachekd.rollouts.modes import inference

_log = logging.getLogger(__name__)
_PROBE = (2, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadFacts:
    """What a model does to the product of its head: cap * tanh(scale * product / cap)."""

    scale: float = 1.0
    softcap: float | None = None


class StudentHead:
    """The head of a model, once it is proven that a loss may take its place.

    Attributes:
        facts: what follows the head, or None where whole logits must be made.
    """

    def __init__(self, model: Any, inner: Any) -> None:
        """Run a small batch through ``model``; ``inner`` is the same without wrappers."""
        base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        self._module: Any = base.get_output_embeddings() if _has_head(base) else None
        self.facts: HeadFacts | None = None
        self._function: Callable[[Tensor, Head], Tensor] | None = None
        # One object for all steps, which a compiled model breaks its graph at and knows again.
        self._forward = torch.compiler.disable(self._call)  # type: ignore[no-untyped-call]
        why = self._prove(model, base)
        if why:
            _log.warning(
                "%s: the loss cannot be fused with the head: %s. Logits of whole batches are made",
                type(base).__name__,
                why,
            )

    @contextmanager
    def replaced(self, function: Callable[[Tensor, Head], Tensor]) -> Iterator[None]:
        """Within, the model's head calls a function of hidden states [B, T, D] and the head.

        The model goes on with logits [B, T, 1] that are all what the function returned: data
        parallelism looks for the parameters of a step in the graph of the model's output.
        """
        assert self.facts is not None, "only a proven head may be replaced"
        before, self._function = vars(self._module).get("forward"), function
        self._module.forward = self._forward
        try:
            yield
        finally:
            self._function = None
            if before is None:
                del self._module.forward
            else:
                self._module.forward = before

    def _call(self, hidden_BTD: Tensor) -> Tensor:
        facts, module = self.facts, self._module
        assert facts is not None and self._function is not None, "set by `replaced`"
        head = Head(
            weight_VD=module.weight, bias_V=module.bias, scale=facts.scale, softcap=facts.softcap
        )
        value = self._function(hidden_BTD, head).to(hidden_BTD.dtype)
        # No view: FSDP2 hangs its hooks on what a module returns, and views may lose them.
        return value.expand(*hidden_BTD.shape[:-1], 1).clone()

    def _prove(self, model: Any, base: Any) -> str | None:
        """Find the facts; why they cannot be found, or None."""
        if not isinstance(self._module, nn.Linear):
            return f"its head is a {type(self._module).__name__}, not a plain Linear"
        seen: list[Tensor] = []
        hook = self._module.register_forward_hook(lambda _, __, output: seen.append(output))
        device = next(base.parameters()).device
        tokens_BT = torch.arange(8, device=device).view(_PROBE)
        try:
            with inference(model):
                final = model(input_ids=tokens_BT, use_cache=False).logits.float()
        finally:
            hook.remove()
        if len(seen) != 1 or seen[0].shape != final.shape:
            return "its head does not run once over all positions"
        raw = seen[0].float()
        for facts in _candidates(base.config):
            if torch.allclose(_after(raw, facts), final, rtol=_tolerance(seen[0]), atol=1e-5):
                self.facts = facts
                return None
        return "what it does to its logits is not a scale or a soft cap of its configuration"


def _has_head(base: Any) -> bool:
    return hasattr(base, "get_output_embeddings")


def _candidates(config: Any) -> list[HeadFacts]:
    """What configurations of transformers say of logits, most particular first."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    scales = []
    for name, divides in (
        ("logit_scale", False),
        ("lm_head_multiplier", False),
        ("logits_scaling", True),
    ):
        value = getattr(text, name, None)
        if isinstance(value, int | float) and value:
            scales.append(1 / value if divides else float(value))
    scales.append(1.0)
    cap = getattr(text, "final_logit_softcapping", None)
    plain = [HeadFacts(scale=scale) for scale in scales]
    return plain if not cap else [*(replace(one, softcap=float(cap)) for one in plain), *plain]


def _after(raw: Tensor, facts: HeadFacts) -> Tensor:
    scaled = raw * facts.scale
    return scaled if facts.softcap is None else facts.softcap * torch.tanh(scaled / facts.softcap)


def _tolerance(raw: Tensor) -> float:
    return 8 * torch.finfo(raw.dtype).eps if raw.dtype != torch.float32 else 1e-5
