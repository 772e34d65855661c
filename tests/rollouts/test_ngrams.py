"""No n-gram twice: what transformers writes with the same setting, whatever the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, NoRepeatNGramLogitsProcessor

from cachekd.errors import ConfigError
from cachekd.rollouts import Ask
from cachekd.rollouts.ngrams import NGrams
from cachekd.rollouts.responses import DrawSpec
from cachekd.rollouts.sampling import write

VOCAB, END = 12, 3
PROMPTS = [[5, 6, 7, 5, 6, 7, 5], [8], [9, 9, 9, 10], [1, 2, 1, 2], [4, 4]]


@pytest.fixture(scope="module")
def model() -> Any:
    """A model of few tokens, that repeats itself soon."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


def asks(prompts: list[list[int]]) -> list[Ask]:
    nothing = np.empty(0, np.int32)
    return [Ask(input_ids=np.array(ids, np.int32), number=0, forced=nothing) for ids in prompts]


def spec(**further: Any) -> DrawSpec:
    return DrawSpec(**{"max_new_tokens": 20, "vocab_size": VOCAB, "end_tokens": (END,), **further})


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", [0, 1])
def test_banned_tokens_are_those_of_transformers(size: int, seed: int) -> None:
    ids = np.random.default_rng(seed).integers(0, 4, 40).tolist()
    begun = 5
    grams = NGrams(size, [ids[:begun]])
    for length in range(begun, len(ids) + 1):
        scores = torch.zeros(1, VOCAB)
        shaped = NoRepeatNGramLogitsProcessor(size)(torch.tensor([ids[:length]]), scores)
        assert grams.banned(0) == set(shaped[0].isneginf().nonzero()[:, 0].tolist())
        if length < len(ids):
            grams.add(0, ids[length])


@pytest.mark.parametrize("size", [2, 3])
def test_greedy_text_is_what_generate_writes(model: Any, size: int) -> None:
    found = write(model, asks(PROMPTS), spec(greedy=True, no_repeat_ngram_size=size))
    plain = write(model, asks(PROMPTS), spec(greedy=True))
    for ids, text in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            wanted = model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
                do_sample=False,
                max_new_tokens=20,
                no_repeat_ngram_size=size,
                eos_token_id=END,
                pad_token_id=END,
            )
        assert text.response.tolist() == wanted[0, len(ids) :].tolist()
    differ = [a.response.tolist() != b.response.tolist() for a, b in zip(found, plain, strict=True)]
    assert any(differ), "the rule must have changed something"


def test_no_ngram_of_prompt_and_response_comes_twice(model: Any) -> None:
    for seed in range(3):
        for ids, text in zip(
            PROMPTS,
            write(model, asks(PROMPTS), spec(seed=seed, no_repeat_ngram_size=2)),
            strict=True,
        ):
            whole = [*ids, *text.response.tolist()]
            new = [tuple(whole[i : i + 2]) for i in range(max(len(ids) - 1, 0), len(whole) - 1)]
            old = {tuple(ids[i : i + 2]) for i in range(len(ids) - 1)}
            assert len(set(new)) == len(new) and not old & set(new)


def test_the_batch_changes_no_draw(model: Any) -> None:
    together = write(model, asks(PROMPTS), spec(no_repeat_ngram_size=2))
    for one, text in zip(asks(PROMPTS), together, strict=True):
        (alone,) = write(model, [one], spec(no_repeat_ngram_size=2))
        assert alone.response.tolist() == text.response.tolist()


def test_no_token_left_is_an_error(model: Any) -> None:
    with pytest.raises(ConfigError, match="no token of 12 is left"):
        write(model, asks([[5]]), spec(end_tokens=(), no_repeat_ngram_size=1))
