"""Ids given to a teacher: entries of their rows, whichever teacher, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Family

from cachekd.config import ScoringConfig
from cachekd.errors import ConfigError
from cachekd.teachers import Selection, Teacher
from cachekd.teachers._given import given_rows
from cachekd.teachers.dummy import DummyTeacher, dummy_logits
from cachekd.teachers.hf import HFTeacher
from cachekd.types import Int32, TopKLogits

DOCUMENTS = [np.int32([9, 30, 41, 200, 17, 5]), np.int32([100, 7]), np.int32([50, 60, 70])]
WANTED = [np.bool_([0, 1, 1, 0, 1]), None, np.bool_([0, 1])]
GIVEN = [np.int32([[3, 3], [8, 9], [200, 0]]), None, np.int32([[4]])]


def hf(folder: Path) -> HFTeacher:
    config = ScoringConfig(teacher=str(folder), device="cpu")
    return HFTeacher.load(config, HFTeacher.identify(config), threads=1)  # type: ignore[arg-type]


def dense(teacher: Teacher, ids_L: Int32, vocab: int) -> np.ndarray:
    """Log-probabilities of a document alone, float64 [L-1, V]."""
    if isinstance(teacher, HFTeacher):
        with torch.no_grad():
            tokens = torch.from_numpy(ids_L.astype(np.int64))[None]
            logits = teacher.model.double()(input_ids=tokens).logits[0, :-1, :vocab]
        teacher.model.float()
    else:
        logits = torch.from_numpy(dummy_logits(ids_L, vocab)[:-1]).double()
    return np.asarray(torch.log_softmax(logits, dim=-1))


def entries(targets: TopKLogits, row: int) -> dict[int, float]:
    part = slice(targets.offsets[row], targets.offsets[row + 1])
    return dict(zip(targets.ids[part].tolist(), targets.logprobs[part].tolist(), strict=True))


@pytest.mark.parametrize("kind", ["hf", "dummy"])
def test_given_ids_are_entries_of_their_rows(family: Family, kind: str) -> None:
    teacher: Teacher = hf(family.teacher) if kind == "hf" else DummyTeacher()
    selection = Selection(k=4, p=1.0, min_k=1, vocab_size=family.vocab, temperatures=(2.0,))
    found = teacher.score(DOCUMENTS, 8, selection, WANTED, GIVEN)
    alone = teacher.score(DOCUMENTS, 8, selection, WANTED)
    for place, targets in enumerate(found):
        table = dense(teacher, DOCUMENTS[place], family.vocab)
        wanted = WANTED[place]
        rows = np.arange(targets.rows) if wanted is None else wanted.nonzero()[0]
        given = GIVEN[place]
        for number, row in enumerate(rows.tolist()):
            row_given = [] if given is None else given[number].tolist()
            union = set(np.argsort(-table[row])[:4].tolist()) | set(row_given)
            held = entries(targets, row)
            assert set(held) == union
            np.testing.assert_allclose(
                list(held.values()), table[row, list(held)], atol=2e-4, rtol=1e-4
            )
            tail = np.log(np.exp(np.delete(table[row], list(union))).sum())
            np.testing.assert_allclose(targets.tail[row], tail, atol=2e-4, rtol=1e-4)
        for name in ("next_logprob", "entropy"):
            assert getattr(targets, name).tobytes() == getattr(alone[place], name).tobytes()
    assert found[1].ids.tolist() == alone[1].ids.tolist()


SELECTION = Selection(k=4, p=1.0, min_k=1, vocab_size=20, temperatures=())


def test_no_given_ids_is_none() -> None:
    masks = [np.ones(2, bool), np.ones(1, bool)]
    assert given_rows(None, masks, SELECTION) is None
    assert given_rows([None, None], masks, SELECTION) is None
    found = given_rows([np.int32([[1, 2], [3, 4]]), None], masks, SELECTION)
    assert found is not None and found.tolist() == [[1, 2], [3, 4], [-1, -1]]


@pytest.mark.parametrize(
    ("given", "selection", "message"),
    [
        ([np.int32([[1]])], replace(SELECTION, tau=0.1), "without sampled entries"),
        ([np.int32([[1]])], replace(SELECTION, k=0, samples=4), "without sampled entries"),
        ([np.int32([[1], [2]])], SELECTION, "each of 1 captured rows"),
        ([np.int32([1])], SELECTION, "each of 1 captured rows"),
        ([np.int32([[20]])], SELECTION, r"in \[0, 20\)"),
        ([np.int32([[-1]])], SELECTION, r"in \[0, 20\)"),
    ],
)
def test_what_cannot_be_given_is_refused(
    given: list[Int32], selection: Selection, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        given_rows(given, [np.ones(1, bool)], selection)
