"""ROUGE-L against the library called as the papers call it, and against a slow one of our own."""

from __future__ import annotations

import re

import numpy as np
import pytest
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer

from cachekd.evaluation.rouge import rouge_l, sees

PAIRS = [
    ("The cats were sleeping on the mats.", ["A cat sleeps on a mat", "cats, sleeping"]),
    ("order 66 has shipped", ["Your order #66 was shipped on 2020-01-02!"]),
    ("", ["something"]),
    ("nothing alike", ["quite other words"]),
    ("the same", ["the same"]),
    ("a b c d e f g", ["g f e d c b a", "a c e g"]),
]


def words(text: str) -> list[str]:
    stem = PorterStemmer().stem
    found = re.findall(r"[a-z0-9]+", text.lower())
    return [stem(word) if len(word) > 3 else word for word in found]


def longest(left: list[str], right: list[str]) -> int:
    """The longest common subsequence, by its definition."""
    if not left or not right:
        return 0
    if left[-1] == right[-1]:
        return longest(left[:-1], right[:-1]) + 1
    return max(longest(left[:-1], right), longest(left, right[:-1]))


def slow(response: str, reference: str) -> float:
    left, right = words(response), words(reference)
    common = longest(left, right)
    if not common:
        return 0.0
    precision, recall = common / len(left), common / len(right)
    return 200 * precision * recall / (precision + recall)


def test_it_is_the_longest_common_subsequence_of_stems() -> None:
    found = rouge_l([response for response, _ in PAIRS], [known for _, known in PAIRS])
    expected = [max(slow(response, one) for one in known) for response, known in PAIRS]
    assert found == pytest.approx(expected)
    assert found[0] > 50 and found[2] == 0 and found[4] == 100


def test_it_is_what_the_library_says() -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    generator = np.random.default_rng(0)
    vocabulary = "running runs ran cat cats nation national the of 42".split()
    texts = [" ".join(generator.choice(vocabulary, 12)) for _ in range(30)]
    responses, references = (
        texts[:10],
        [texts[10:20][i : i + 1] + texts[20 + i :] for i in range(10)],
    )
    expected = [
        100 * max(scorer.score(one, response)["rougeL"].fmeasure for one in known)
        for response, known in zip(responses, references, strict=True)
    ]
    assert rouge_l(responses, references) == pytest.approx(expected)


def test_text_without_latin_words_is_not_seen() -> None:
    assert not sees("你好 世界 !") and not sees("— …")
    assert sees("日本 7") and sees("Ärger")
