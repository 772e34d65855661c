"""ECE against a case worked by hand; label words against a dense loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from torch import Tensor

from cachekd.evaluation import calibration as module
from cachekd.evaluation.calibration import calibration, reliability, word_logprobs
from cachekd.evaluation.scores import Side
from cachekd.evaluation.tokens import Tokens
from cachekd.types import Int32

Dense = Callable[[Side, Int32], Tensor]
WORDS = ((7,), (9, 4), (9, 11, 3), (12,))


def example(prompt: Int32) -> Tokens:
    return Tokens(
        prompt=prompt,
        response=np.array([7], np.int32),
        judged=np.ones(1, bool),
        length=1,
        end=None,
        labels=tuple(np.array(word, np.int32) for word in WORDS),
        prompt_cut=False,
        response_cut=False,
    )


@pytest.fixture(scope="module")
def tokens(student: Side) -> list[Tokens]:
    generator = np.random.default_rng(3)
    ids = [generator.integers(0, student.vocab_size, n).astype(np.int32) for n in (3, 1, 6)]
    return [example(prompt) for prompt in [*ids, ids[0]]]


def test_ece_by_hand() -> None:
    confidence = np.array([0.05, 0.1, 0.55, 0.6, 0.95, 1.0, 0.0])
    right = np.array([False, True, True, False, True, True, False])
    found = reliability(confidence, right)
    # (0, .1] and 0: .05 .1 0, one of three; (.5, .6]: .55 .6, one of two; (.9, 1]: both right.
    first, middle, last = abs(1 / 3 - 0.05), abs(0.5 - 0.575), abs(1 - 0.975)
    assert found.ece == pytest.approx((3 * first + 2 * middle + 2 * last) / 7)
    assert [one["count"] for one in found.bins] == [3, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert found.bins[5] == {
        "low": 0.5,
        "high": 0.6,
        "count": 2,
        "accuracy": 0.5,
        "confidence": pytest.approx(0.575),
    }
    assert found.bins[1]["accuracy"] is None


def test_a_calibrated_model_has_none() -> None:
    assert reliability(np.array([0.75] * 4), np.array([True] * 3 + [False])).ece == 0.0


def test_a_word_is_the_product_of_its_tokens(
    student: Side, tokens: list[Tokens], dense: Dense
) -> None:
    told: list[tuple[int, int]] = []
    found = word_logprobs(student, tokens, 64, lambda *at: told.append(at))
    # The prompt, the prompt and 9, the prompt and 9 11: three contexts for four words.
    assert told[-1] == (12, 12)
    for p, item in enumerate(tokens):
        for w, word in enumerate(WORDS):
            log_q = dense(student, np.concatenate([item.prompt, np.array(word, np.int32)]))
            first = len(item.prompt) - 1
            expected = sum(float(log_q[first + i, token]) for i, token in enumerate(word))
            assert found[p, w] == pytest.approx(expected, rel=1e-4)


def test_confidence_is_over_the_words_and_raw(
    student: Side, tokens: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    probabilities = np.array([[0.3, 0.1], [0.02, 0.06], [0.4, 0.4001], [0.9, 0.1]])
    monkeypatch.setattr(module, "word_logprobs", lambda *_: np.log(probabilities))
    figures, bins = calibration(student, tokens, [0, 1, 0, 0], 64, lambda *_: None)
    assert figures["label_accuracy"]["mean"] == 75.0
    assert figures["label_mass"]["mean"] == pytest.approx((0.4 + 0.08 + 0.8001 + 1) / 4)
    # Renormalised .75 .75 (both right), .50006 (wrong), .9 (right); raw .3, .06, .4001, .9.
    assert figures["ece"]["mean"] == pytest.approx((0.5 + 0.50006 + 0.1) / 4, abs=1e-4)
    assert figures["ece_raw"]["mean"] == pytest.approx((0.7 + 0.94 + 0.4001 + 0.1) / 4)
    assert [one["count"] for one in bins] == [0, 0, 0, 0, 0, 1, 0, 2, 1, 0]


def test_words_without_probability_are_a_gap(
    student: Side, tokens: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = np.array([[-np.inf, -np.inf]] + [[0.0, -np.inf]] * 3)
    monkeypatch.setattr(module, "word_logprobs", lambda *_: nothing)
    figures, bins = calibration(student, tokens, [0, 0, 0, 0], 64, lambda *_: None)
    assert bins == [] and {one["mean"] for one in figures.values()} == {None}
    assert "probability 0" in (figures["ece"]["why"] or "")
