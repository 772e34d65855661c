"""Phrases of trained tokens: offsets of real tokens, borders of runs, and factors of pairs."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import record
from tiny import Family, save_tokenizer
from transformers import AutoTokenizer

from cachekd.data.alignment import LossMask
from cachekd.errors import ConfigError
from cachekd.training.collate import Collator
from cachekd.training.spans import SpanFinder, span_factors, span_finder, text_of

TEXTS = [
    "the old house stands in the mountain, and a cat sleeps.",
    "naïve café — 今天天气很好。我们去公园。",
    "a 👩‍👩‍👧 family 😀😀, é",
    "  two  spaces\n\nand lines \t",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def _decode(tokenizer: Any) -> Any:
    return lambda ids: tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_begin_where_the_tokenizer_says(text: str, tokenizer: Any) -> None:
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    assert len(ids) > len(text) / 4
    found, starts = text_of(_decode(tokenizer), ids)
    assert found == text
    assert starts == [start for start, _ in encoded["offset_mapping"]]


def test_a_part_of_a_character_at_either_end(tokenizer: Any) -> None:
    ids = tokenizer("😀 the 😀")["input_ids"]
    text, starts = text_of(_decode(tokenizer), ids[1:-1])
    assert text.strip("\ufffd") == " the " and len(starts) == len(ids) - 2
    assert starts == sorted(starts)


def _words(tokenizer: Any, ids: list[int], span: Any) -> list[str]:
    """Text of each phrase, without spaces around it."""
    return [
        tokenizer.decode([i for i, s in zip(ids, span, strict=True) if s == number]).strip()
        for number in range(max(span) + 1)
    ]


@pytest.mark.parametrize("text", TEXTS[:2])
def test_phrases_of_the_text_are_phrases_of_its_tokens(text: str, tokenizer: Any) -> None:
    ids = tokenizer(text)["input_ids"]
    finder = SpanFinder(tokenizer, "phrases")
    rows = np.arange(len(ids) - 1)
    span = finder(np.array(ids, np.int32), rows)
    phrases = {
        TEXTS[0]: ["old house stands", "in the mountain", "and a cat sleeps"],
        TEXTS[1]: ["aïve café", "今天天气很好", "我们去公园"],
    }
    assert _words(tokenizer, ids[1:], span) == phrases[text]
    assert (span == -1).any(), "punctuation belongs to no phrase"
    again = pickle.loads(pickle.dumps(finder))(np.array(ids, np.int32), rows)  # for workers
    assert again.tolist() == span.tolist()


def test_no_phrase_crosses_a_gap_or_a_special_token(tokenizer: Any) -> None:
    text = "the cat sleeps<|end|>the dog<|user|>runs fast"
    ids = np.array(tokenizer(text)["input_ids"], np.int32)
    finder = SpanFinder(tokenizer, "adjacent")
    span = finder(ids, np.arange(len(ids) - 1))
    special = np.isin(ids[1:], tokenizer.convert_tokens_to_ids(["<|end|>", "<|user|>"]))
    assert special.sum() == 2 and (span[special] == -1).all()
    assert _words(tokenizer, ids[1:].tolist(), span)[1:] == ["the dog", "runs fast"]
    kept = np.delete(np.arange(len(ids) - 1), 2)
    assert finder(ids, kept)[:3].tolist() == [0, 0, 1], "a row that is not trained parts phrases"
    assert finder(ids, kept[:0]).tolist() == []


def test_factors_are_those_of_the_formula() -> None:
    spans = [np.array([0, 0, 0, -1, 1]), np.array([-1, -1]), np.array([0, 0])]
    weights = np.array([2, 2, 2, 2, 2, 1, 1, 0.5, 0.5], np.float32)
    number, factor = span_factors(spans, weights)
    assert number.tolist() == [0, 0, 0, -1, 1, -1, -1, 2, 2]
    first, last = 2 * 5 / (2 * 3), 0.5 * 2 / (1 * 2)
    assert factor.tolist() == pytest.approx([first, first, 0, 0, 0, 0, 0, last, 0])


def test_a_packed_batch_has_the_phrases_of_its_documents(tokenizer: Any) -> None:
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    items = [record(i, prompt_length=3, vocab=len(tokenizer)) for i in ids]
    collate = Collator(LossMask.COMPLETION, spans=span_finder(tokenizer, "phrases"))
    alone = [collate([item])["targets"] for item in items]
    packed = collate([items[:2], items[2:]])["targets"]
    assert packed["span"].dtype == torch.int64
    torch.testing.assert_close(
        packed["span_factor"], torch.cat([targets["span_factor"] for targets in alone])
    )
    assert (packed["span_factor"] > 0).any() and packed["span_factor"].dtype == torch.float32
    for targets in alone[1:]:
        before = packed["span"].max()
        assert targets["span"].max() < before, "numbers are unique in a batch"
    assert span_finder(tokenizer, None) is None and "span" not in Collator()([items[0]])["targets"]


class Overlapping:
    def spans(self, text: str) -> list[tuple[int, int]]:
        return [(0, 3), (2, 4)]


def test_a_chunker_that_overlaps_is_refused(tokenizer: Any, monkeypatch: Any) -> None:
    import sys
    import types

    module = types.ModuleType("overlapping_chunker")
    module.Overlapping = Overlapping  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "overlapping_chunker", module)
    finder = SpanFinder(tokenizer, "overlapping_chunker:Overlapping")
    ids = np.array(tokenizer(TEXTS[0])["input_ids"], np.int32)
    with pytest.raises(ConfigError, match=r"disjoint, ascending.*\(2, 4\)"):
        finder(ids, np.arange(len(ids) - 1))


def test_a_student_is_trained_on_phrases(family: Family, data: Path, tmp_path: Path) -> None:
    from runs import capture, train, weights

    capture(family, data, tmp_path / "cache")
    options = {"objective": "span", "objective_options": {"chunker": "adjacent"}}
    out = train(family, (tmp_path / "cache",), tmp_path / "out", **options)
    before = weights(family.student)
    moved = max(float((after - before[k]).abs().max()) for k, after in weights(out).items())
    assert 1e-3 < moved < 1
