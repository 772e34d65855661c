"""The student as it is read between steps: the numbers of the loss itself."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from fakes import VOCAB, sparse, teacher_of, topk_logits

from cachekd.losses.reference import dense_divergence
from cachekd.training.reading import ModelReader

DOCUMENTS = [
    np.array(ids, np.int32) for ids in ([1, 2, 3, 4, 5], [6, 7], [8, 9, 10, 11, 12, 13, 14])
]
FIRSTS = [2, 0, 3]


def model(kind: str = "llama") -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                initializer_range=0.5,
            )
        ).train()
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    ).train()


def reader(student: Any, batch_tokens: int = 64) -> ModelReader:
    return ModelReader(lambda: student, VOCAB, batch_tokens, nullcontext)


def dense(student: Any, document: Any, first: int) -> torch.Tensor:
    with torch.no_grad():
        student.eval()
        logits = student(torch.from_numpy(document.astype(np.int64))[None]).logits[0, first:-1]
        student.train()
    return torch.log_softmax(logits.double(), -1)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_tokens", [4, 1000])
def test_logprobs_of_the_actual_tokens(kind: str, batch_tokens: int) -> None:
    student = model(kind)
    found = reader(student, batch_tokens).next_logprobs(DOCUMENTS, FIRSTS)
    for document, first, own in zip(DOCUMENTS, FIRSTS, found, strict=True):
        taken = torch.from_numpy(document[first + 1 :].astype(np.int64))[:, None]
        wanted = dense(student, document, first).gather(1, taken)[:, 0]
        np.testing.assert_allclose(own, wanted.numpy(), atol=1e-5)
    assert student.training and all(p.grad is None for p in student.parameters())


def test_best_ids_are_those_of_topk() -> None:
    student = model()
    found = reader(student).best_ids(DOCUMENTS, FIRSTS, 5)
    for document, first, own in zip(DOCUMENTS, FIRSTS, found, strict=True):
        assert own.tolist() == dense(student, document, first).topk(5).indices.tolist()
    whole = reader(student).best_ids(DOCUMENTS, FIRSTS, 1000)
    assert whole[0].shape == (2, VOCAB)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl"])
def test_divergences_over_the_whole_vocabulary(name: str) -> None:
    student = model()
    teachers = [teacher_of(ids.tolist()) for ids in DOCUMENTS]
    targets = [topk_logits(sparse(teacher), VOCAB) for teacher in teachers]
    found = reader(student).divergences(DOCUMENTS, FIRSTS, targets, name)
    for document, first, teacher, own in zip(DOCUMENTS, FIRSTS, teachers, found, strict=True):
        q = dense(student, document, first).exp()
        p = torch.softmax(teacher[first:], -1)
        np.testing.assert_allclose(own, dense_divergence(name, p, q).numpy(), rtol=1e-4)


def test_short_memory_is_met_with_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    student = model()
    wanted = reader(student, 1000).next_logprobs(DOCUMENTS, FIRSTS)
    whole = reader(student, 1000)
    whole.next_logprobs(DOCUMENTS, FIRSTS)
    forward = type(student.model).forward

    def small(self: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if len(input_ids) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(type(student.model), "forward", small)
    for one, other in zip(wanted, whole.next_logprobs(DOCUMENTS, FIRSTS), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_adapters_are_read_with_their_model() -> None:
    from peft import LoraConfig, get_peft_model

    student = get_peft_model(
        model(), LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    )
    found = reader(student).next_logprobs(DOCUMENTS, FIRSTS)
    for document, first, own in zip(DOCUMENTS, FIRSTS, found, strict=True):
        taken = torch.from_numpy(document[first + 1 :].astype(np.int64))[:, None]
        wanted = dense(student, document, first).gather(1, taken)[:, 0]
        np.testing.assert_allclose(own, wanted.numpy(), atol=1e-5)


def test_a_head_that_is_not_understood_makes_whole_logits() -> None:
    student = model()
    wanted = reader(student).next_logprobs(DOCUMENTS, FIRSTS)
    head = student.lm_head
    student.lm_head = torch.nn.Sequential(head)
    found = reader(student).next_logprobs(DOCUMENTS, FIRSTS)
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
