"""The student writes: same draws whatever the batch, the right distribution, the right length."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Family

from cachekd.errors import ConfigError, TeacherError
from cachekd.rollouts import Ask
from cachekd.rollouts.responses import DrawSpec
from cachekd.rollouts.sampling import Mix, write

VOCAB, END = 40, 3


def llama(seed: int = 0, **further: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB + 8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        **further,
    )
    return LlamaForCausalLM(config).train()


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_positions=64,
            n_embd=16,
            n_layer=2,
            n_head=2,
            initializer_range=0.5,
            resid_pdrop=0.3,
        )
    ).train()


def mistral() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(2)
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=4,
            max_position_embeddings=64,
            initializer_range=0.5,
        )
    ).train()


def spec(**further: Any) -> DrawSpec:
    return DrawSpec(**{"max_new_tokens": 10, "vocab_size": VOCAB, "end_tokens": (END,), **further})


def ask(ids: list[int], number: int = 0, forced: tuple[int, ...] = ()) -> Ask:
    return Ask(input_ids=np.array(ids, np.int32), number=number, forced=np.array(forced, np.int32))


PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [16, 17], [5, 6, 7, 20, 21]]


@pytest.mark.parametrize("make", [llama, gpt2, mistral])
def test_greedy_is_what_generate_writes(make: Any) -> None:
    model = make()
    written = write(model, [ask(ids) for ids in PROMPTS], spec(greedy=True))
    for ids, text in zip(PROMPTS, written, strict=True):
        with torch.no_grad():
            model.eval()
            out = model.generate(
                torch.tensor([ids]),
                do_sample=False,
                max_new_tokens=10,
                eos_token_id=END,
                pad_token_id=END,
                suppress_tokens=list(range(VOCAB, model.config.vocab_size)) or None,
                attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            )
        assert text.response.tolist() == out[0, len(ids) :].tolist()
        assert text.ended == (text.response[-1] == END)


@pytest.mark.parametrize("make", [llama, gpt2, mistral])
def test_the_batch_changes_no_draw(make: Any) -> None:
    model = make()
    asks = [ask(ids, number) for ids in PROMPTS for number in range(3)]
    together = write(model, asks, spec())
    alone = [write(model, [one], spec())[0] for one in asks]
    small = write(model, asks, spec(batch_tokens=40))
    for one, two, three in zip(together, alone, small, strict=True):
        assert one.response.tolist() == two.response.tolist() == three.response.tolist()
        np.testing.assert_allclose(one.logprob, two.logprob, atol=2e-5)
    assert len({tuple(text.response) for text in together}) > len(PROMPTS)
    assert len({len(text.response) for text in together}) > 1  # rows were dropped on the way


def test_the_mode_of_the_model_comes_back() -> None:
    model = gpt2()
    first = write(model, [ask([5, 6])], spec())[0]
    assert model.training
    assert first.response.tolist() == write(model, [ask([5, 6])], spec())[0].response.tolist()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.7])
def test_first_tokens_are_drawn_from_the_mixture(alpha: float) -> None:
    student, teacher = llama(0), llama(5)
    draws = 4000
    asks = [ask([5, 6, 7], number) for number in range(draws)]
    one = spec(max_new_tokens=1, batch_tokens=1 << 20)
    written = write(student, asks, one, Mix(model=teacher, alpha=alpha))
    with torch.no_grad():
        q, p = (
            torch.softmax(m.eval()(torch.tensor([[5, 6, 7]])).logits[0, -1, :VOCAB].double(), -1)
            for m in (student, teacher)
        )
    wanted = (alpha * p + (1 - alpha) * q).numpy()
    counts = np.bincount([int(text.response[0]) for text in written], minlength=VOCAB)
    likely = wanted * draws > 5
    chi2 = ((counts - wanted * draws) ** 2 / (wanted * draws))[likely].sum()
    assert chi2 < likely.sum() + 4 * (2 * likely.sum()) ** 0.5
    drawn = np.array([text.response[0] for text in written])
    np.testing.assert_allclose(
        [text.logprob[0] for text in written], np.log(wanted[drawn]), atol=1e-4
    )


def test_without_a_share_the_teacher_is_not_asked() -> None:
    student = llama(0)
    plain = write(student, [ask(ids) for ids in PROMPTS], spec())
    mixed = write(student, [ask(ids) for ids in PROMPTS], spec(), Mix(model=None, alpha=0.0))
    assert [t.response.tolist() for t in plain] == [t.response.tolist() for t in mixed]


def test_forced_tokens_stand_and_the_rest_is_drawn_as_it_would_have_been() -> None:
    model = llama(0)
    whole = write(model, [ask(ids) for ids in PROMPTS], spec())
    forced = [tuple(text.response[: 1 + i].tolist()) for i, text in enumerate(whole)]
    again = write(
        model, [ask(ids, 0, begun) for ids, begun in zip(PROMPTS, forced, strict=True)], spec()
    )
    for text, other, begun in zip(whole, again, forced, strict=True):
        assert other.response.tolist() == text.response.tolist()
        assert (other.logprob[: len(begun)] == 0).all()
        np.testing.assert_allclose(
            other.logprob[len(begun) :], text.logprob[len(begun) :], atol=2e-5
        )


def test_rows_that_are_over_need_no_place_in_the_context() -> None:
    model = gpt2()
    begun = tuple(range(5, 14))
    prompts = [ask([5] * 54, 0, begun), ask([6] * 54), ask([7] * 54), ask([8] * 50)]
    never = spec(end_tokens=())
    together = write(model, prompts, never)
    alone = [write(model, [one], never)[0] for one in prompts]
    assert [len(text.response) for text in together] == [10] * 4
    assert [t.response.tolist() for t in together] == [t.response.tolist() for t in alone]


@pytest.mark.parametrize("top_p", [0.3, 0.8])
def test_top_p_is_that_of_transformers(top_p: float) -> None:
    from transformers import TopPLogitsWarper

    model = llama(0)
    with torch.no_grad():
        logits = model.eval()(torch.tensor([[5, 6, 7]])).logits[:, -1, :VOCAB]
    left = torch.softmax(TopPLogitsWarper(top_p)(None, logits), -1)[0].numpy()
    asks = [ask([5, 6, 7], number) for number in range(400)]
    written = write(model, asks, spec(max_new_tokens=1, top_p=top_p))
    drawn = np.array([int(text.response[0]) for text in written])
    assert (left[drawn] > 0).all() and len(set(drawn)) <= (left > 0).sum()
    np.testing.assert_allclose(np.exp([t.logprob[0] for t in written]), left[drawn], rtol=1e-4)


def test_what_is_whole_already_is_not_gone_on_with() -> None:
    model = llama(0)
    ended, full, open_ = write(
        model, [ask([5], 0, (7, END)), ask([5], 0, tuple(range(5, 15))), ask([5])], spec()
    )
    assert ended.response.tolist() == [7, END] and ended.ended
    assert full.response.tolist() == list(range(5, 15)) and not full.ended
    assert len(open_.response) >= 1


def test_top_k_leaves_the_best() -> None:
    model = llama(0)
    asks = [ask([5, 6, 7], number) for number in range(200)]
    written = write(model, asks, spec(max_new_tokens=1, top_k=2))
    assert len({int(text.response[0]) for text in written}) == 2
    cold = write(model, asks, spec(max_new_tokens=1, temperature=1e-3))
    assert len({int(text.response[0]) for text in cold}) == 1


def test_nothing_beyond_the_vocabulary_is_written() -> None:
    model = llama(0)
    with torch.no_grad():
        model.lm_head.weight[VOCAB:] *= 100
    written = write(model, [ask(ids, n) for ids in PROMPTS for n in range(20)], spec())
    assert max(int(text.response.max()) for text in written) < VOCAB


def test_bad_prompts_and_bad_numbers_are_named() -> None:
    model = llama(0)
    with pytest.raises(ConfigError, match="at least one token"):
        write(model, [ask([])], spec())
    with pytest.raises(ConfigError, match=r"context of 64; found a prompt of 60"):
        write(model, [ask([5] * 60)], spec())
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(TeacherError, match="LlamaForCausalLM gave logits that are NaN"):
        write(model, [ask([5])], spec())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("too large"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["device", "cpu"],
)
def test_short_memory_is_met_with_halves(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    model = llama(0)
    wanted = write(model, [ask(ids) for ids in PROMPTS], spec())
    forward = type(model).forward

    @functools.wraps(forward)
    def small(self: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if len(input_ids) > 2:
            raise error
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", small)
    halves = write(model, [ask(ids) for ids in PROMPTS], spec())
    assert [t.response.tolist() for t in halves] == [t.response.tolist() for t in wanted]


def test_a_real_family_writes(family: Family, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder) for folder in (family.student, family.teacher)
    )
    settings = DrawSpec(max_new_tokens=6, vocab_size=family.vocab, end_tokens=(0,))
    written = write(student, [ask([7, 8, 9])], settings, Mix(model=teacher, alpha=0.5))
    assert 1 <= len(written[0].response) <= 6 and np.isfinite(written[0].logprob).all()
