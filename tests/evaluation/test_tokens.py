"""Examples as tokens: prompts as the papers word them, cut on either side; ends; label words."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tiny import Family, write_rows
from transformers import AutoTokenizer

from cachekd.config import EvaluateConfig
from cachekd.data.nouns import BadRow
from cachekd.evaluation.examples import read_examples
from cachekd.evaluation.models import find_models
from cachekd.evaluation.texts import end_tokens
from cachekd.evaluation.tokens import Tokens, tokenise

Made = Callable[..., list[Tokens]]
EOS, END = 0, 5
PLAIN = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nsay it\n\n### Response:\n"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
    "say it\n\n### Input:\nloud\n\n### Response:\n"
)
ROWS = [
    {"instruction": "say it", "input": "", "output": "the cat"},
    {"instruction": "say it", "input": "loud", "output": ["the dog runs", "it"]},
]


@pytest.fixture(scope="module")
def tokenizer(family: Family) -> Any:
    return AutoTokenizer.from_pretrained(family.student)


@pytest.fixture
def made(family: Family, tokenizer: Any, tmp_path: Path) -> Made:
    def run(rows: list[dict[str, Any]] = ROWS, **settings: Any) -> list[Tokens]:
        path = write_rows(tmp_path / "rows.jsonl", rows)
        config = EvaluateConfig(model=(str(family.student),), data=(str(path),), **settings)
        found = tokenise(read_examples(config).items, tokenizer, config, datetime(2026, 1, 1))
        assert not any(isinstance(item, BadRow) for item in found)
        return [item for item in found if isinstance(item, Tokens)]

    return run


def test_alpaca_prompts_and_responses(made: Made, tokenizer: Any) -> None:
    found = made(preset="paper")
    for item, prompt, response in zip(
        found, (PLAIN, WITH_INPUT), ("the cat", "the dog runs"), strict=True
    ):
        assert item.prompt.tolist() == tokenizer(prompt)["input_ids"]
        assert item.response.tolist() == [*tokenizer(response)["input_ids"], EOS]
        assert item.judged.all() and len(item.judged) == len(item.response)
        assert item.length == len(item.response) - 1 and item.end == EOS
        assert not item.prompt_cut and not item.response_cut


def test_long_prompts_lose_their_end_or_their_beginning(made: Made, tokenizer: Any) -> None:
    whole = tokenizer(PLAIN)["input_ids"]
    paper = made(preset="paper", max_prompt_length=20)[0]
    assert paper.prompt.tolist() == whole[:20] and paper.prompt_cut
    own = made(prompt_template="alpaca", max_prompt_length=20)[0]
    assert own.prompt.tolist() == whole[-20:] and own.prompt_cut
    assert own.response.tolist() == paper.response.tolist()


def test_long_responses_lose_their_end_but_not_their_length(made: Made) -> None:
    whole, cut = made()[1], made(max_new_tokens=2)[1]
    assert cut.response.tolist() == whole.response.tolist()[:2] and cut.response_cut
    assert cut.length == whole.length and len(cut.judged) == 2


def test_a_chat_template_tells_how_a_turn_ends(
    made: Made, family: Family, tokenizer: Any, tmp_path: Path
) -> None:
    found = made()
    turn = [{"role": "user", "content": "say it"}]
    prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert found[0].prompt.tolist() == tokenizer(prompt)["input_ids"]
    assert found[0].response[-1] == END == found[0].end
    (model,) = find_models(EvaluateConfig(model=(str(family.student),), data=("none",)))
    assert end_tokens(model, tokenizer, found) == (EOS, END)
    assert end_tokens(model, tokenizer, made(prompt_template="alpaca")) == (EOS,)


def test_label_words_are_responses_without_an_end(made: Made, tokenizer: Any) -> None:
    for template in ("alpaca", "chat", "plain"):
        for item in made(
            [{**row, "truth": "dog"} for row in ROWS],
            prompt_template=template,
            label_words=("dog", "slow cat"),
            label_column="truth",
        ):
            assert [ids.tolist() for ids in item.labels] == [
                tokenizer(word)["input_ids"] for word in ("dog", "slow cat")
            ]
