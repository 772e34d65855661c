"""Logits in chunks of rows: those of the model's own forward, for models of different heads."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers

from cachekd.teachers import _head
from cachekd.teachers._head import LogitRows

VOCAB = 96
COMMON = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "initializer_range": 0.3},
    "opt": {
        "hidden_size": 16,
        "word_embed_proj_dim": 8,
        "ffn_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "init_std": 0.3,
    },
    "llama": LLAMA,
    "qwen2": LLAMA,
    "mistral": LLAMA,
    "gemma2": {**LLAMA, "head_dim": 8, "final_logit_softcapping": 0.5},
    "cohere": {**LLAMA, "logit_scale": 0.125},
    "granite": {**LLAMA, "logits_scaling": 7.0},
    "mixtral": {**LLAMA, "num_local_experts": 2, "num_experts_per_tok": 1},
    "phi": {**LLAMA, "num_key_value_heads": 2},  # its head has a bias
}


def tiny(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    settings = transformers.AutoConfig.for_model(kind, **COMMON, **MODELS[kind])
    model = transformers.AutoModelForCausalLM.from_config(settings)
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        torch.nn.init.normal_(head.bias)
    return model.to(dtype).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(2, VOCAB, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[1, 6:] = 0
    return tokens, mask


def whole(model: Any, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens, attention_mask=mask, use_cache=False).logits.flatten(0, 1)


@torch.inference_mode()
@pytest.mark.parametrize("kind", MODELS)
def test_chunks_are_the_models_own_logits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_head, "chunk_rows", lambda *_: 4)
    model = tiny(kind)
    tokens, mask = batch()
    rows_of = LogitRows(model, torch.device("cpu"))
    assert rows_of.chunked
    rows = torch.tensor([0, 3, 4, 12, 13, 16, 22, 31, 9])
    parts = list(rows_of.chunks(tokens, mask, rows))
    assert [part.shape for part in parts] == [(4, VOCAB), (4, VOCAB), (1, VOCAB)]
    want = whole(model, tokens, mask)
    assert (torch.cat(parts) - want[rows]).abs().max() <= 1e-5 * want.abs().max()
    assert want.abs().max() <= 0.5 or kind != "gemma2"
    assert (whole(model, tokens, mask) == want).all(), "the model is as it was before"


@pytest.mark.parametrize("in_chunks_alone", [False, True])
def test_tokens_that_a_model_rules_out_are_no_difference(
    in_chunks_alone: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny("llama")

    def rule_out(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if not in_chunks_alone or len(kwargs["input_ids"]) == 1:
            output.logits[..., 3] = -torch.inf

    model.register_forward_hook(rule_out, with_kwargs=True)
    assert LogitRows(model, torch.device("cpu")).chunked != in_chunks_alone
    assert ("differ by inf" in caplog.text) == in_chunks_alone and "nan" not in caplog.text


@torch.inference_mode()
def test_the_head_sees_wanted_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    rows_of = LogitRows(model, torch.device("cpu"))
    seen: list[int] = []
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][..., 0].numel()))
    body: list[int] = []
    model.model.layers[0].register_forward_pre_hook(lambda *_: body.append(1))
    tokens, mask = batch()
    monkeypatch.setattr(_head, "chunk_rows", lambda *_: 4)
    list(rows_of.chunks(tokens, mask, torch.tensor([1, 2, 3, 5, 7, 8])))
    assert sum(seen[1:]) == 6 and seen[0] == len(tokens), "one row a document with the body"
    assert body == [1], "the body runs once"
    assert not list(rows_of.chunks(tokens, mask, torch.empty(0, dtype=torch.long)))


@torch.inference_mode()
def test_a_model_with_an_adapter() -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        tiny("llama"),
        LoraConfig(target_modules=["q_proj", "lm_head"], r=4, init_lora_weights=False),
    ).eval()
    tokens, mask = batch()
    rows_of = LogitRows(adapted, torch.device("cpu"))
    assert rows_of.chunked
    rows = torch.arange(33)
    want = whole(adapted, tokens, mask)
    found = torch.cat(list(rows_of.chunks(tokens, mask, rows)))
    assert (found - want).abs().max() <= 1e-5 * want.abs().max()
    assert (want - whole(tiny("llama"), tokens, mask)).abs().max() > 0.01


@torch.inference_mode()
def test_half_precision() -> None:
    model = tiny("llama", torch.bfloat16)
    tokens, mask = batch()
    rows_of = LogitRows(model, torch.device("cpu"))
    (found,) = rows_of.chunks(tokens, mask, torch.arange(33))
    want = whole(model, tokens, mask)
    assert rows_of.chunked and found.dtype == torch.bfloat16
    assert (found.float() - want.float()).abs().max() <= 0.02 * want.abs().max()


class Rewritten(transformers.LlamaForCausalLM):  # type: ignore[misc]
    """Its logits depend on more than the row's hidden state."""

    def forward(self, input_ids: torch.Tensor, **further: Any) -> Any:
        output = super().forward(input_ids=input_ids, **further)
        output.logits = output.logits + input_ids[:, :, None]
        return output


class Opaque(transformers.LlamaForCausalLM):  # type: ignore[misc]
    """Its decoder's output is not what models of transformers give."""

    def forward(self, input_ids: torch.Tensor, **further: Any) -> Any:
        states = self.model(input_ids=input_ids, **further)
        if not hasattr(states, "hidden_states"):
            raise TypeError("not mine")
        further_states = states.last_hidden_state[:, input_ids.shape[1] - 1]
        return super().forward(input_ids=input_ids, **further) if len(further_states) else None


@torch.inference_mode()
@pytest.mark.parametrize("kind", [Rewritten, Opaque])
def test_a_head_that_cannot_be_cut_falls_back_with_a_warning(
    kind: type, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = kind(transformers.LlamaConfig(**COMMON, **LLAMA)).eval()
    tokens, mask = batch()
    with caplog.at_level(logging.WARNING):
        rows_of = LogitRows(model, torch.device("cpu"))
    assert not rows_of.chunked
    assert "cannot be run on chunks of rows" in caplog.text and kind.__name__ in caplog.text
    rows = torch.tensor([30, 2, 7])
    (found,) = rows_of.chunks(tokens, mask, rows)
    assert (found == whole(model, tokens, mask)[rows]).all()
