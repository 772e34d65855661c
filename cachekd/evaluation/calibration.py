"""Calibration on label words: is a model as often right as it is sure?

In: a model, and for each example the tokens of every label word after the prompt, and the true one.
Out: expected calibration error sum_b |b| / N |accuracy_b - confidence_b| over ten bins of equal
width (Guo et al., "On Calibration of Modern Neural Networks", 2017, Eq. 3; MiniLLM, 3.3), the
accuracy, and the bins of a reliability diagram. The probability of a word is the product of its
tokens' probabilities; the word with the largest is predicted. Confidence is that probability
divided by the sum over the words (``ece``), or as it is (``ece_raw``); ``label_mass`` is that sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cachekd.evaluation.figures import Figure, figure, gap
from cachekd.evaluation.scores import Side, Wanted, score
from cachekd.evaluation.tokens import Tokens

Float64 = NDArray[np.float64]
Bin = dict[str, float | int | None]

BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """ECE and its bins: low, high, count, accuracy and confidence (None in an empty bin)."""

    ece: float
    bins: tuple[Bin, ...]


def calibration(
    side: Side,
    tokens: Sequence[Tokens],
    labels: Sequence[int],
    batch_tokens: int,
    told: Callable[[int, int], None],
) -> tuple[dict[str, Figure], list[Bin]]:
    """Figures, and the bins of the renormalised confidence.

    Args:
        side: the model.
        tokens: of the examples, with their label words.
        labels: the true word of each.
        batch_tokens: token budget of a batch.
        told: is told how many contexts of how many are read.

    Raises:
        TeacherError, MemoryError: see `cachekd.evaluation.scores.score`.
    """
    log_q_PW = word_logprobs(side, tokens, batch_tokens, told)
    best_P = log_q_PW.argmax(1)
    right_P = best_P == np.asarray(labels)
    log_mass_P = np.logaddexp.reduce(log_q_PW, axis=1)
    raw_P = np.exp(log_q_PW.max(1))
    with np.errstate(invalid="ignore"):
        sure_P = np.exp(log_q_PW.max(1) - log_mass_P)
    why = "the model gives all label words of an example probability 0"
    if np.isnan(sure_P).any():
        return {name: gap(why) for name in ("label_accuracy", "label_mass", "ece", "ece_raw")}, []
    found = reliability(sure_P, right_P)
    figures = {
        "label_accuracy": figure([100 * float(right_P.mean())]),
        "label_mass": figure([float(np.exp(log_mass_P).mean())]),
        "ece": figure([found.ece]),
        "ece_raw": figure([reliability(raw_P, right_P).ece]),
    }
    return figures, list(found.bins)


def reliability(confidence_P: Float64, right_P: NDArray[np.bool_]) -> Reliability:
    """ECE over bins (low, high]; a confidence of 0 is in the first."""
    number_P = np.clip(np.ceil(confidence_P * BINS).astype(np.int64) - 1, 0, BINS - 1)
    bins: list[Bin] = []
    ece = 0.0
    for number in range(BINS):
        inside = number_P == number
        count = int(inside.sum())
        accuracy = float(right_P[inside].mean()) if count else None
        confidence = float(confidence_P[inside].mean()) if count else None
        if accuracy is not None and confidence is not None:
            ece += count / len(right_P) * abs(accuracy - confidence)
        bins.append(
            {
                "low": number / BINS,
                "high": (number + 1) / BINS,
                "count": count,
                "accuracy": accuracy,
                "confidence": confidence,
            }
        )
    return Reliability(ece=ece, bins=tuple(bins))


def word_logprobs(
    side: Side, tokens: Sequence[Tokens], batch_tokens: int, told: Callable[[int, int], None]
) -> Float64:
    """Log-probability of each label word after each prompt, float64 [P, W].

    Words that differ in their last token alone share a context, which is read once.
    """
    places: dict[bytes, list[tuple[int, int]]] = {}
    contexts: dict[bytes, Wanted] = {}
    for p, item in enumerate(tokens):
        for w, word in enumerate(item.labels):
            key = np.concatenate([[p], word[:-1]]).tobytes()
            places.setdefault(key, []).append((p, w))
            contexts[key] = _joined(contexts.get(key), item, word.astype(np.int64))
    wanted = list(contexts.values())
    scores = score(side, None, wanted, batch_tokens, told=lambda n: told(n, len(wanted)))
    log_q_PW = np.zeros((len(tokens), len(tokens[0].labels)))
    for at, one in zip(places.values(), scores, strict=True):
        for (p, w), part in zip(at, np.split(one["nll"], len(at)), strict=True):
            log_q_PW[p, w] = -part.sum()
    return log_q_PW


def _joined(before: Wanted | None, item: Tokens, word: NDArray[np.int64]) -> Wanted:
    """A prompt with all but the last token of a word; its rows once more for each such word."""
    rows = np.arange(len(item.prompt) - 1, len(item.prompt) + len(word) - 1)
    ids = np.concatenate([item.prompt, word[:-1]]).astype(np.int32)
    if before is None:
        return Wanted(input_ids=ids, rows=rows, targets=word)
    return Wanted(
        input_ids=ids,
        rows=np.concatenate([before.rows, rows]),
        targets=np.concatenate([before.targets, word]),
    )
