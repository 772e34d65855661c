"""Active parameters: of dense models, of mixtures of experts, and where they cannot be told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import Family, save_mixture
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig

from cachekd.costs.comparison.parameters import active_of, count, counted


def test_a_dense_model_looks_its_embedding_up(family: Family) -> None:
    found = count(family.teacher, trust_remote_code=False)
    embedding = family.vocab * 32
    assert found.total - found.active == embedding
    width, inner = 32, 64
    layer = width * width * 2 + 2 * width * width // 2 + 3 * width * inner + 2 * width
    assert found.active == 2 * layer + width + embedding
    assert found.experts == 1 and "experts" not in found.to_json()


def _saved(config: AutoConfig, folder: Path) -> Path:
    config.save_pretrained(folder)
    return folder


def test_a_tied_embedding_counts_once_as_the_head(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=50,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        tie_word_embeddings=True,
    )
    found = count(_saved(config, tmp_path), trust_remote_code=False)
    routed = 2 * 4 * 3 * 8 * 16
    assert (found.experts, found.chosen) == (4, 2)
    assert found.active == found.total - routed // 2


def test_experts_that_a_token_is_sent_to(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        vocab_size=50,
        hidden_size=8,
        moe_intermediate_size=4,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        num_experts=8,
        num_experts_per_tok=1,
        tie_word_embeddings=False,
    )
    found = count(_saved(config, tmp_path), trust_remote_code=False)
    routed = 2 * 8 * 3 * 8 * 4
    assert found.active == found.total - 50 * 8 - routed * 7 // 8
    assert found.to_json()["experts_per_token"] == 1


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_active_parameters_of_a_mixture_are_those_that_a_forward_multiplies_with(
    kind: str, tmp_path: Path
) -> None:
    """Counted by torch as it runs a token through the saved model, whatever its experts are."""
    save_mixture(tmp_path, 320, kind=kind)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.tensor([[7]]), use_cache=False)
    width = model.config.num_attention_heads * (getattr(model.config, "head_dim", None) or 16)
    # Of one token its scores with itself, and its values: no parameters.
    of_attention = 2 * width * model.config.num_hidden_layers
    norms = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    found = count(tmp_path, trust_remote_code=False)
    assert found.active == counter.get_total_flops() // 2 - of_attention + norms
    assert (found.experts, found.chosen) == (8, 2)
    assert found.total == sum(p.numel() for p in model.parameters()) > 2 * found.active


@pytest.mark.parametrize(
    ("names", "config"),
    [
        (["layers.0.mlp.experts.0.w1", "head"], {"num_local_experts": 8}),
        (["layers.0.mlp.experts.0.w1", "head"], {"num_experts_per_tok": 2}),
        (["layers.0.mlp.bank.0.w1", "head"], {"num_experts": 8, "num_experts_per_tok": 2}),
    ],
)
def test_what_cannot_be_told_is_a_gap(names: list[str], config: dict[str, int]) -> None:
    found = active_of(dict.fromkeys(names, 10), config)
    assert found.active is None and found.total == 20 and "configuration" in found.why


def test_a_model_that_cannot_be_built_is_a_gap(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing-like-it"}')
    found = counted(tmp_path, trust_remote_code=False)
    assert found.active is None and found.total is None
    assert "cannot be built without weights: ValueError" in found.why and "\n" not in found.why


def test_shared_experts_are_always_active() -> None:
    sizes = {"l.mlp.experts.0.w": 40, "l.mlp.shared_experts.w": 7, "l.mlp.gate.w": 3}
    found = active_of(sizes, {"n_routed_experts": 4, "num_experts_per_tok": 1})
    assert found.active == 10 + 7 + 3
