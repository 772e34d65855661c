"""SCRG on cases made by hand: the corrected position, the replaced token, what is written anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from cachekd.objectives._rollouts import Correction
from cachekd.rollouts import Ask, Written
from cachekd.rollouts.scrg import correct
from cachekd.types import Float32, Int32, TopKLogits

EOS, PROMPT = 0, [9, 9]


def ask(number: int = 0) -> Ask:
    return Ask(input_ids=np.array(PROMPT, np.int32), number=number, forced=np.empty(0, np.int32))


def text(*tokens: int) -> Written:
    return Written(
        response=np.array(tokens, np.int32),
        logprob=np.zeros(len(tokens), np.float32),
        ended=tokens[-1] == EOS,
    )


class Table:
    """A teacher and a student that are tables of responses: best token and divergence of each.

    ``teacher`` {response so far: best token}, ``kl`` {response so far: divergence}, ``then``
    {response so far: how the student goes on}.
    """

    def __init__(
        self,
        teacher: Mapping[tuple[int, ...], int],
        kl: Mapping[tuple[int, ...], float],
        then: Mapping[tuple[int, ...], tuple[int, ...]] | None = None,
    ) -> None:
        self.teacher, self.kl, self.then = teacher, kl, then or {}
        self.asked: list[tuple[int, ...]] = []
        self.names: list[str] = []

    def score(
        self, documents: Sequence[Int32], first_rows: Sequence[int], given: Any = None
    ) -> list[TopKLogits]:
        return [self._targets(d, first) for d, first in zip(documents, first_rows, strict=True)]

    def _targets(self, document: Int32, first: int) -> TopKLogits:
        rows = len(document) - 1
        ids, offsets = [], [0]
        for row in range(rows):
            if row >= first:
                best = self.teacher[tuple(document[first + 1 : row + 1].tolist())]
                ids += [best, best + 1]
            offsets.append(len(ids))
        zeros = np.zeros(rows, np.float32)
        return TopKLogits(
            offsets=np.array(offsets, np.int64),
            ids=np.array(ids, np.int32),
            logprobs=np.log(np.tile([0.7, 0.2], len(ids) // 2)).astype(np.float32),
            weights=None,
            tail=np.full(rows, np.log(0.1), np.float32),
            next_logprob=zeros,
            lognorm={},
            entropy=zeros,
            vocab_size=16,
        )

    def divergences(
        self, documents: Sequence[Int32], first_rows: Sequence[int], targets: Any, name: str
    ) -> list[Float32]:
        self.names.append(name)
        return [
            np.array(
                [
                    self.kl.get(tuple(d[first + 1 : row + 1].tolist()), 0.0)
                    for row in range(first, len(d) - 1)
                ],
                np.float32,
            )
            for d, first in zip(documents, first_rows, strict=True)
        ]

    def write(self, asks: Sequence[Ask]) -> list[Written]:
        begun = [tuple(one.forced.tolist()) for one in asks]
        self.asked += begun
        return [text(*one, *self.then.get(one, ())) for one in begun]


def run(table: Table, written: list[Written], **settings: Any) -> Any:
    asks = [ask(i) for i in range(len(written))]
    return correct(
        asks,
        written,
        Correction(**settings),
        scores=table,
        reader=table,  # type: ignore[arg-type]
        write=table.write,
        seed=0,
    )


# The student wrote 1 2 3 EOS; the teacher would have said 1, 5, 6, EOS at these places.
TEACHER = {(): 1, (1,): 5, (1, 2): 6, (1, 2, 3): EOS}


def test_the_worst_of_the_places_that_differ_is_corrected() -> None:
    kl = {(): 9.0, (1,): 0.5, (1, 2): 2.0, (1, 2, 3): 5.0}
    table = Table(TEACHER, kl, {(1, 2, 6): (7, EOS)})
    (found,) = run(table, [text(1, 2, 3, EOS)])
    assert found.response.tolist() == [1, 2, 6, 7, EOS]
    assert found.corrections == (2,) and found.replaced == (3,) and found.ended
    assert table.asked == [(1, 2, 6)] and table.names == ["reverse_kl"]


def test_of_equal_ones_the_first() -> None:
    table = Table(TEACHER, dict.fromkeys(TEACHER, 1.0), {(1, 5): (8,)})
    (found,) = run(table, [text(1, 2, 3, EOS)])
    assert found.response.tolist() == [1, 5, 8] and found.corrections == (1,) and not found.ended


def test_without_a_difference_nothing_is_corrected() -> None:
    same = {(): 1, (1,): 2, (1, 2): EOS}
    table = Table(same, dict.fromkeys(same, 3.0))
    (found,) = run(table, [text(1, 2, EOS)], frequency=3)
    assert found.response.tolist() == [1, 2, EOS] and found.corrections == () and found.ended
    assert table.asked == []


def test_the_end_token_at_the_position_ends_it() -> None:
    table = Table({(): 1, (1,): EOS, (1, 2): 3}, {(1,): 4.0})
    (found,) = run(table, [text(1, 2, 3)])
    assert found.response.tolist() == [1, EOS] and found.ended and found.replaced == (2,)


def test_an_end_token_may_be_replaced() -> None:
    table = Table({(): 1, (1,): 4}, {(1,): 4.0}, {(1, 4): (5, EOS)})
    (found,) = run(table, [text(1, EOS)])
    assert found.response.tolist() == [1, 4, 5, EOS] and found.replaced == (EOS,)


def test_a_response_of_one_token() -> None:
    table = Table({(): 4}, {(): 1.0}, {(4,): (EOS,)})
    (found,) = run(table, [text(7)])
    assert found.response.tolist() == [4, EOS] and found.corrections == (0,)
    (same,) = run(Table({(): 7}, {(): 1.0}), [text(7)])
    assert same.response.tolist() == [7] and same.corrections == ()


def test_further_corrections_stand_behind() -> None:
    kl = {(): 1.0, (1,): 9.0, (1, 5): 0.1, (1, 5, 2): 0.3}
    teacher = {**TEACHER, (1, 5): 8, (1, 5, 2): 6, (1, 5, 2, 6): EOS}
    then = {(1, 5): (2, 3), (1, 5, 2, 6): (EOS,)}
    (found,) = run(Table(teacher, kl, then), [text(1, 2, 3, EOS)], frequency=2)
    assert found.corrections == (1, 3) and found.replaced == (2, 3)
    assert found.response.tolist() == [1, 5, 2, 6, EOS]


def test_texts_of_a_batch_are_corrected_apart() -> None:
    same = text(1, 5, 6)
    teacher = {**TEACHER, (1, 5): 6}
    table = Table(teacher, {(1,): 1.0}, {(1, 5): (6,)})
    first, second = run(table, [text(1, 2, 3, EOS), same], frequency=1)
    assert first.corrections == (1,) and second.corrections == ()
    assert second.response is same.response and table.asked == [(1, 5)]


def test_the_divergence_is_the_one_that_is_asked_for() -> None:
    table = Table(TEACHER, {(1,): 1.0})
    run(table, [text(1, 2, 3, EOS)], divergence="forward_kl")
    assert table.names == ["forward_kl"]


def test_drawn_tokens_follow_the_head_and_leave_the_tail_alone() -> None:
    table = Table({(): 3}, {(): 1.0})
    found = run(table, [text(7) for _ in range(4000)], pick="sample")
    tokens = [int(one.response[0]) for one in found]
    shares = [tokens.count(token) / 4000 for token in (3, 4, 7)]
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.03)  # 7: the tail, not corrected
    again = run(table, [text(7) for _ in range(4000)], pick="sample")
    assert tokens == [int(one.response[0]) for one in again]
