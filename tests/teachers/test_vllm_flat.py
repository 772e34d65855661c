"""The flat form of vLLM's log-probabilities: what is read of it, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_engine import FlatLogprobs

from cachekd.errors import MismatchError, TeacherError
from cachekd.teachers import Selection
from cachekd.teachers._vllm_flat import flat_targets
from cachekd.teachers._vllm_rows import read_row, targets_of


def _flat(logs_NV: np.ndarray, ids_L: np.ndarray, count: int) -> FlatLogprobs:
    flat = FlatLogprobs()
    flat.add([], [], [])
    for row, next_id in zip(logs_NV, ids_L[1:].tolist(), strict=True):
        best = np.argsort(-row, kind="stable")[:count].tolist()
        ids = [next_id, *best]
        flat.add(ids, row[ids].tolist(), [1] * len(ids))
    return flat


@pytest.mark.parametrize(
    "chosen",
    [
        {"k": 6, "p": 1.0, "min_k": 1},
        {"k": 6, "p": 0.7, "min_k": 3},
        {"k": 40, "p": 1.0, "min_k": 1},
        {"k": 6, "p": 1.0, "min_k": 1, "min_prob": 0.1},
    ],
)
def test_the_flat_form_is_read_as_dictionaries_are(chosen: dict[str, Any]) -> None:
    """Ties, tokens without any probability, padding of the embedding, and rows not wanted."""
    random = np.random.default_rng(3)
    raw_NV = random.normal(size=(30, 42)).round(1) * 2
    raw_NV[:, 40:] = -12.0  # beyond the vocabulary
    logs_NV = raw_NV - np.log(np.exp(raw_NV).sum(1, keepdims=True))
    logs_NV[4, 5:9] = -9999.0
    ids_L = random.integers(0, 40, 31).astype(np.int32)
    ids_L[5] = 6
    wanted = random.random(30) < 0.8
    wanted[4] = True
    selection = Selection(vocab_size=40, temperatures=(), **chosen)
    flat = _flat(logs_NV, ids_L, 42)
    places = [{str(v): {"logprob": float(row[v])} for v in range(42)} for row in logs_NV]
    expected = targets_of(
        [read_row(places[t], int(ids_L[t + 1]), 40) if wanted[t] else None for t in range(30)],
        [{}] * 30,
        selection,
    )
    found = flat_targets(flat, ids_L, wanted, selection)
    assert np.array_equal(found.offsets, expected.offsets)
    assert np.array_equal(found.ids, expected.ids)
    for name in ("logprobs", "tail", "next_logprob", "entropy"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-6)


def test_answers_that_are_none_are_refused() -> None:
    ids_L = np.array([1, 2, 3], dtype=np.int32)
    logs_NV = np.log(np.full((2, 8), 1 / 8))
    selection = Selection(k=8, p=1.0, min_k=1, vocab_size=8, temperatures=())
    everything = np.ones(2, dtype=bool)

    def read(flat: FlatLogprobs, vocab_size: int = 8) -> Any:
        chosen = Selection(k=8, p=1.0, min_k=1, vocab_size=vocab_size, temperatures=())
        return flat_targets(flat, ids_L, everything, chosen)

    with pytest.raises(TeacherError, match="log-probabilities of 4 places"):
        flat_targets(_flat(logs_NV, ids_L, 8), np.r_[ids_L, 1], np.ones(3, bool), selection)
    with pytest.raises(TeacherError, match="they sum to 2"):
        read(_flat(logs_NV + np.log(2), ids_L, 8))
    with pytest.raises(MismatchError, match="beyond the vocabulary of 5"):
        read(_flat(logs_NV, ids_L, 8), 5)
    bare = FlatLogprobs()
    for ids in ([], [5], [5]):
        bare.add(ids, [-1.0] * len(ids), [1] * len(ids))
    with pytest.raises(TeacherError, match="leaves the prompt's own token out"):
        read(bare)
