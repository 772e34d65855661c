"""Log-probabilities and divergences at rows against dense loops; batches; what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from cachekd.errors import TeacherError
from cachekd.evaluation import scores as module
from cachekd.evaluation.scores import Side, Wanted, score
from cachekd.types import Int32

Dense = Callable[[Side, Int32], Tensor]
NAMES = ("forward_kl", "reverse_kl", "tvd")


@pytest.fixture(scope="module")
def asked(student: Side) -> list[Wanted]:
    generator = np.random.default_rng(0)
    found = []
    for length, first in ((9, 4), (30, 12), (3, 0), (17, 15)):
        ids = generator.integers(0, student.vocab_size, length).astype(np.int32)
        rows = np.arange(first, length - 1)
        found.append(Wanted(input_ids=ids, rows=rows, targets=ids[rows + 1].astype(np.int64)))
    return found


def test_scores_are_those_of_a_dense_loop(
    student: Side, teacher: Side, asked: list[Wanted], dense: Dense
) -> None:
    found = score(student, teacher, asked, 64, NAMES)
    for item, scores in zip(asked, found, strict=True):
        log_q, log_p = dense(student, item.input_ids), dense(teacher, item.input_ids)
        for place, (row, target) in enumerate(zip(item.rows, item.targets, strict=True)):
            q, p = log_q[row], log_p[row]
            expected = {
                "nll": -q[target],
                "forward_kl": (p.exp() * (p - q)).sum(),
                "reverse_kl": (q.exp() * (q - p)).sum(),
                "tvd": (p.exp() - q.exp()).abs().sum() / 2,
            }
            for name, value in expected.items():
                assert scores[name][place] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name


def test_neither_batch_nor_tile_changes_a_score(
    student: Side, teacher: Side, asked: list[Wanted], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = score(student, teacher, asked, 1, NAMES)
    monkeypatch.setitem(module._TILE, "cpu", 3 * student.vocab_size)
    told: list[int] = []
    together = score(student, teacher, asked, 10_000, NAMES, told.append)
    assert told == [0, len(asked)]
    for left, right in zip(alone, together, strict=True):
        for name in ("nll", *NAMES):
            assert left[name] == pytest.approx(right[name], rel=1e-4, abs=1e-6)


def test_what_one_side_excludes() -> None:
    """Probability 0 on the left of a divergence counts nothing; on the right it is infinite."""
    p = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    q = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log()
    found = module._scores([q, p], torch.tensor([1]), NAMES)
    assert found["forward_kl"] == pytest.approx(0.5 * np.log(2))
    assert found["tvd"] == pytest.approx(0.25) and found["nll"] == pytest.approx(np.log(2))
    assert np.isposinf(found["reverse_kl"])


def test_a_row_may_be_asked_for_more_than_once(student: Side, asked: list[Wanted]) -> None:
    item = asked[1]
    twice = Wanted(
        input_ids=item.input_ids,
        rows=np.concatenate([item.rows, item.rows[:2]]),
        targets=np.concatenate([item.targets, np.array([5, 7])]),
    )
    (once,), (found,) = score(student, None, [item], 64), score(student, None, [twice], 64)
    assert found["nll"][:-2] == pytest.approx(once["nll"], rel=1e-5)
    assert len(found["nll"]) == len(once["nll"]) + 2


def test_short_memory_halves_the_batch(
    student: Side, asked: list[Wanted], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = score(student, None, asked, 10_000)
    read, sizes = module._read, []

    def short(sides: object, documents: list[Wanted], names: object) -> object:
        sizes.append(len(documents))
        if len(documents) > 1:
            raise MemoryError("no room")
        return read(sides, documents, names)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_read", short)
    found = score(student, None, asked, 10_000)
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    for left, right in zip(expected, found, strict=True):
        assert left["nll"] == pytest.approx(right["nll"], rel=1e-4)


def test_nan_names_the_model(teacher: Side, student: Side, asked: list[Wanted]) -> None:
    model = copy.deepcopy(student.model)
    with torch.no_grad():
        model.get_input_embeddings().weight[int(asked[0].input_ids[0])] = float("nan")
    broken = Side.of("model broken", model, student.vocab_size)
    with pytest.raises(TeacherError, match="model broken gave logits that are NaN"):
        score(broken, teacher, asked, 64, NAMES)


def test_too_few_logits_name_the_model(student: Side, asked: list[Wanted]) -> None:
    side = Side.of("model small", student.model, student.vocab_size + 1)
    with pytest.raises(TeacherError, match=r"model small gives \d+ logits; its tokenizer has"):
        score(side, None, asked, 64)
