"""Parameters that a token's forward multiplies with: of a mixture of experts those it is sent to.

In: the folder of a model. Out: `Parameters`. Counted on modules without weights, so that a model
that does not fit into memory is counted too. Looking a token up in the embedding multiplies
nothing: its matrix counts once, as the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts")
_OF_EXPERTS = ".experts."


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Counts of a model.

    Attributes:
        total: all parameters, or None.
        active: those that a token's forward multiplies with, or None.
        experts: of a layer that has them, 1 for a dense model.
        chosen: experts that a token is sent to, or None where the configuration does not say.
        why: why ``active`` is not known, or "".
    """

    total: int | None
    active: int | None
    experts: int
    chosen: int | None
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        found: dict[str, Any] = {"parameters": self.total, "active_parameters": self.active}
        if self.experts > 1:
            found |= {"experts": self.experts, "experts_per_token": self.chosen}
        return found | ({"why": self.why} if self.why else {})


def counted(folder: Path, *, trust_remote_code: bool) -> Parameters:
    """Parameters of the model in a folder; of one that cannot be built without weights, why."""
    try:
        return count(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # code of the model's own raises what it likes; times stand without
        text = f"{type(error).__name__}: {error}".strip().split("\n", 1)[0]
        why = f"its modules cannot be built without weights: {text}"
        return Parameters(total=None, active=None, experts=1, chosen=None, why=why)


def count(folder: Path, *, trust_remote_code: bool) -> Parameters:
    """Parameters of the model in a folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    looked_up = 0 if head is not None and head.weight is embedding else embedding.numel()
    return active_of(sizes, text.to_dict(), looked_up=looked_up)


def active_of(
    sizes: Mapping[str, int], config: Mapping[str, Any], *, looked_up: int = 0
) -> Parameters:
    """Counts from the sizes of all parameters by name, and the configuration.

    Args:
        sizes: numbers of elements; routed experts have ``.experts.`` in their names.
        config: of the model.
        looked_up: elements of an embedding that is only looked up in.
    """
    total = sum(sizes.values())
    experts, chosen = _first(config, _EXPERTS) or 1, _first(config, _CHOSEN)
    routed = sum(size for name, size in sizes.items() if _OF_EXPERTS in f".{name}")
    if experts <= 1 and not routed:
        return Parameters(total=total, active=total - looked_up, experts=1, chosen=None)
    if experts <= 1 or chosen is None or not routed:
        why = (
            "its configuration does not say how many experts a layer has and how many a token is "
            "sent to, or its parameters do not say which are experts'"
        )
        return Parameters(total=total, active=None, experts=experts, chosen=chosen, why=why)
    active = total - looked_up - routed + round(routed * chosen / experts)
    return Parameters(total=total, active=active, experts=experts, chosen=chosen)


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    found = (config.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)
