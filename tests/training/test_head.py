"""Heads of models of transformers: proven, replaced, equal to whole logits in every gradient."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from fakes import VOCAB, documents, record
from torch import nn

from cachekd.objectives import build
from cachekd.training.collate import Collator
from cachekd.training.head import StudentHead
from cachekd.training.loss import batch_loss

SIZES = {
    "vocab_size": VOCAB + 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
GATED = {**SIZES, "intermediate_size": 32, "num_key_value_heads": 1}
KINDS: dict[str, dict[str, Any]] = {
    "Llama": GATED,
    "Qwen2": GATED,
    "Qwen3": {**GATED, "head_dim": 8},
    "Mistral": GATED,
    "Gemma2": {**GATED, "head_dim": 8, "final_logit_softcapping": 2.0},
    "Cohere": {**GATED, "logit_scale": 0.25},
    "Granite": {**GATED, "logits_scaling": 3.0},
    "Phi": {**GATED, "num_key_value_heads": 2},
    "OPT": {**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 8},
    "GPT2": {
        "vocab_size": VOCAB + 8,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
}


def _model(kind: str) -> Any:
    import transformers

    torch.manual_seed(1)
    name = f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    config = getattr(transformers, f"{kind}Config")(**KINDS[kind])
    for field in ("attention_dropout", "dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop"):
        if hasattr(config, field):
            setattr(config, field, 0.0)
    model = getattr(transformers, name)(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.train()


def _batch() -> Any:
    return Collator()([record(ids, top_p=0.9) for ids in documents(4, seed=2)])


def _gradients(model: Any, head: StudentHead) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    objective = build("kd", {"temperature": 2.0, "loss": {"ce": 0.3, "kd": 0.7}})
    output = batch_loss(model, head, _batch(), objective, VOCAB)
    (output.loss_sum / output.weight_sum).backward()
    return output.loss_sum.item(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("kind", KINDS)
def test_fused_equals_whole_logits(kind: str) -> None:
    model = _model(kind)
    head = StudentHead(model, model)
    facts = head.facts
    assert facts is not None
    loss, fused = _gradients(model, head)
    head.facts = None  # as for a model whose head is not proven
    expected, whole = _gradients(model, head)
    assert loss == pytest.approx(expected, rel=1e-10)
    assert fused.keys() == whole.keys() and len(fused) > 5
    for name, gradient in whole.items():
        torch.testing.assert_close(fused[name], gradient, atol=1e-11, rtol=1e-7)
    if kind == "Gemma2":
        assert facts.softcap == 2.0
    if kind in ("Cohere", "Granite"):
        assert facts.scale == pytest.approx({"Cohere": 0.25, "Granite": 1 / 3}[kind])


def test_the_head_is_itself_again_afterwards() -> None:
    model = _model("Llama")
    head = StudentHead(model, model)
    tokens = torch.arange(6)[None]
    before = model(input_ids=tokens).logits
    _gradients(model, head)
    assert "forward" not in vars(model.lm_head)
    assert torch.equal(model(input_ids=tokens).logits, before)


class _Odd(nn.Module):
    """A model that does something to its logits that no configuration says."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()

    def forward(self, **inputs: Any) -> Any:
        output = self.inner(**inputs)
        output.logits = output.logits * 1.5 if output.logits.shape[-1] > 1 else output.logits
        return output


def test_a_model_that_is_not_understood_makes_whole_logits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    odd = _Odd(_model("Llama"))
    with caplog.at_level(logging.WARNING):
        head = StudentHead(odd, odd)
    assert head.facts is None
    assert "cannot be fused with the head" in caplog.text
    loss, _ = _gradients(odd, head)
    plain = _model("Llama")
    assert loss != pytest.approx(_gradients(plain, StudentHead(plain, plain))[0], rel=1e-3)


def test_an_adapter_on_the_head_makes_whole_logits(caplog: pytest.LogCaptureFixture) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(_model("Llama"), config)
    with caplog.at_level(logging.WARNING):
        assert StudentHead(model, model).facts is None
    assert "not a plain Linear" in caplog.text


def test_an_adapter_in_the_body_is_trained_through_the_fused_head() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(_model("Llama"), config).double()
    head = StudentHead(model, model)
    assert head.facts is not None
    _, fused = _gradients(model, head)
    head.facts = None
    _, whole = _gradients(model, head)
    assert fused and all("lora_" in name for name in fused)
    for name, gradient in whole.items():
        torch.testing.assert_close(fused[name], gradient, atol=1e-11, rtol=1e-7)


def test_products_run_in_the_dtype_of_autocast() -> None:
    """As the model's own head would, and the gradient comes back in that of the weights."""
    model = _model("Llama").float()
    head = StudentHead(model, model)
    exact, _ = _gradients(model, head)
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradients = _gradients(model, head)
    assert loss != exact
    assert loss == pytest.approx(exact, rel=0.05)
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of the compiler's own look at logits
def test_a_compiled_student_is_compiled_once() -> None:
    model, graphs = _model("Llama"), []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    expected, wanted = _gradients(model, StudentHead(model, model))
    compiled = torch.compile(model, backend=backend)
    head = StudentHead(compiled, model)
    for _ in range(3):
        loss, found = _gradients(compiled, head)
        assert loss == pytest.approx(expected, rel=1e-12)
    assert len(graphs) == 2, "one of the proof, one of training"
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[f"_orig_mod.{name}"], gradient)
