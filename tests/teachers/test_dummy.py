"""The made-up teacher: no weights, the same numbers everywhere, and none without its context."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import Family

from cachekd import PrecomputeConfig
from cachekd.errors import TeacherError
from cachekd.plugins import available, find
from cachekd.teachers import Selection
from cachekd.teachers.dummy import DummyTeacher, dummy_logits

WHOLE = Selection(k=50, p=1.0, min_k=1, vocab_size=50, temperatures=(2.0,))


def config(teacher: object) -> PrecomputeConfig:
    return PrecomputeConfig(teacher=str(teacher), data=("none",), cache="none")


def test_a_row_depends_on_all_tokens_so_far_and_no_later_one() -> None:
    ids = np.int32([5, 6, 7, 8, 9])
    whole = dummy_logits(ids, 50)
    assert whole.shape == (5, 50) and whole.dtype == np.float32 and np.isfinite(whole).all()
    for t in range(5):
        assert np.array_equal(dummy_logits(ids[: t + 1], 50), whole[: t + 1])
        other = ids.copy()
        other[t] += 1
        changed = (dummy_logits(other, 50) != whole).any(axis=1)
        assert changed.tolist() == [False] * t + [True] * (5 - t)


def test_the_numbers_are_these() -> None:
    """Written down, so that another machine must give the same."""
    found = dummy_logits(np.int32([3, 1]), 4)
    again = dummy_logits(np.int32([3, 1]), 4)
    assert found.tobytes() == again.tobytes()
    written = [[2.4397, 0.7670, -3.4534, 3.7969], [2.9078, -3.5261, 3.8978, -3.9970]]
    np.testing.assert_allclose(found, written, atol=1e-3)


def test_rows_are_those_of_the_next_token() -> None:
    ids = np.int32([5, 6, 7, 8])
    (targets,) = DummyTeacher().score([ids], 9, WHOLE, [None])
    logits = dummy_logits(ids, 50).astype(np.float64)
    table = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert targets.rows == 3 and (np.diff(targets.offsets) == 50).all()
    for t in range(3):
        part = slice(*targets.offsets[t : t + 2])
        assert np.abs(table[t, targets.ids[part]] - targets.logprobs[part]).max() < 1e-5
        assert abs(table[t, ids[t + 1]] - targets.next_logprob[t]) < 1e-5


def test_only_wanted_rows_are_captured() -> None:
    ids = [np.int32([5, 6, 7, 8]), np.int32([1, 2])]
    wanted = [np.array([False, True, False]), np.array([False])]
    left, right = DummyTeacher().score(ids, 4, WHOLE, wanted)
    (whole,) = DummyTeacher().score(ids[:1], 4, WHOLE, [None])
    assert np.diff(left.offsets).tolist() == [0, 50, 0] and right.offsets.tolist() == [0, 0]
    assert left.ids.tobytes() == whole.ids[50:100].tobytes()
    assert left.entropy.tolist() == [0, whole.entropy[1], 0]


def test_it_is_found_by_name_and_reads_its_folder(family: Family) -> None:
    assert {"dummy", "hf"} <= set(available("teachers"))
    facts = find("teachers", "dummy").identify(config(family.teacher))
    assert facts.context_length == 128 and facts.tokenizer_folder == family.teacher
    assert facts.weights == "dummy" and facts.adapter is None and facts.dtype == "float32"
    with pytest.raises(TeacherError, match="not a folder"):
        DummyTeacher.identify(config("/no/such/folder"))
