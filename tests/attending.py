"""Tiny students of several kinds, documents with attention, and the loss from whole maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from fakes import VOCAB, attention_maps, record, with_attention
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from cachekd.data.attention import AttentionShape
from cachekd.losses.attention import AttentionMapping, map_heads, map_layers
from cachekd.losses.reference import dense_attention_kl
from cachekd.training.attention import StudentAttention
from cachekd.training.collate import Collator
from cachekd.types import Batch, Record

LAYERS, HEADS, WINDOW = 3, 4, 5
CAPTURED = (0, 2)
COLLATE = Collator(attention=True)
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
OLDER = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**COMMON),
    "qwen2": lambda: Qwen2Config(
        **COMMON, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**COMMON, head_dim=12),
    "mistral": lambda: MistralConfig(**COMMON, sliding_window=WINDOW),
    "gpt2": lambda: GPT2Config(
        **OLDER,
        n_embd=32,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=64,
        initializer_range=0.3,
        scale_attn_by_inverse_layer_idx=True,
    ),
    "opt": lambda: OPTConfig(
        **OLDER,
        hidden_size=32,
        ffn_dim=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        init_std=0.3,
    ),
    "gemma2": lambda: Gemma2Config(
        **COMMON, head_dim=8, sliding_window=WINDOW, attn_logit_softcapping=2.0
    ),
}


def model_of(name: str, attention: str = "sdpa", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = CONFIGS[name]()
    if name == "gemma2":
        # Soft caps are in no other attention of a CPU, and its masks overflow in float64.
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).double()


def mapping_of(layers: int = LAYERS, heads: int = HEADS) -> AttentionMapping:
    return AttentionMapping(
        student=AttentionShape(layers=layers, heads=heads, key_heads=2, head_width=8),
        layers=map_layers(layers, LAYERS, CAPTURED),
        heads=map_heads(heads, HEADS, range(HEADS)),
    )


def records_of(window: int | None) -> list[Record]:
    """Documents of several lengths: whole, with some rows, with the best keys."""
    choices: list[dict[str, Any]] = [{}, {"rows": [1, 4, 9], "weight": 3.0}, {"most": 4}]
    lengths = (9, 14, 12)
    return [
        with_attention(
            record([(3 * n + 7 * i) % VOCAB for i in range(length)], weight=1.0 + n),
            layers=CAPTURED,
            heads=HEADS,
            window=window,
            **further,
        )
        for n, (length, further) in enumerate(zip(lengths, choices, strict=True))
    ]


def inputs_of(batch: Batch) -> dict[str, Any]:
    packed = batch["attention_mask"] is None
    name = "position_ids" if packed else "attention_mask"
    return {"input_ids": batch["input_ids"], name: batch[name], "use_cache": False}


def tapped(tap: StudentAttention, model: Any, batch: Batch) -> Tensor:
    with tap.watching(batch):
        model(**inputs_of(batch))
    return tap.output()


def expected_loss(model: Any, records: Sequence[Record], window: int | None) -> Tensor:
    """The sum over documents that run alone with eager attention, from whole maps."""
    total = torch.zeros((), dtype=torch.float64)
    for item in records:
        attention = item.attention
        assert attention is not None
        length = attention.length
        ids = torch.from_numpy(item.input_ids).long()[None]
        maps = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
        weights = torch.zeros(length, dtype=torch.float64)
        weights[attention.rows] = torch.from_numpy(attention.weights).double() * item.weight
        for place, layer in enumerate(CAPTURED):
            teacher = attention_maps(length, HEADS, len(CAPTURED), window)[place]
            kept = torch.ones_like(teacher, dtype=torch.bool)
            kept[:, attention.rows] = torch.from_numpy(_kept(attention, place))
            found = maps[layer][0, :, :length, :length]
            total = total + dense_attention_kl(teacher, found, weights, kept)
    return total / len(CAPTURED)


def _kept(attention: Any, place: int) -> Any:
    import numpy as np

    maps = len(attention.heads) * len(attention.rows)
    offsets = attention.offsets[place * maps : (place + 1) * maps + 1]
    kept = np.zeros((maps, attention.length), bool)
    keys = attention.keys[offsets[0] : offsets[-1]]
    kept[np.repeat(np.arange(maps), np.diff(offsets)), keys] = True
    return kept.reshape(len(attention.heads), len(attention.rows), -1)


def gradients_of(loss: Tensor, model: Any) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(
    left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float
) -> None:
    """A parameter without a gradient in one has none or 0 in the other."""
    largest, zero = max(value.abs().max().item() for value in right.values()), torch.zeros(())
    assert largest > 1e-3
    for name in {*left, *right}:
        mine, theirs = left.get(name, zero), right.get(name, zero)
        scale = max(theirs.abs().max().item(), largest / 100)
        assert (mine - theirs).abs().max() <= tolerance * scale, name
