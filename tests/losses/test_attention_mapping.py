"""Layer and head mapping for students of another depth or width."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekd.errors import MismatchError
from cachekd.losses.attention import map_heads, map_layers, teacher_layer


def pairs(student: int, teacher: int, captured: list[int]) -> list[tuple[int, int]]:
    return [(pair.student, pair.place) for pair in map_layers(student, teacher, captured)]


def test_layers_by_hand() -> None:
    assert [teacher_layer(j, 4, 4) for j in range(4)] == [0, 1, 2, 3]
    assert [teacher_layer(j, 2, 8) for j in range(2)] == [3, 7]
    assert [teacher_layer(j, 12, 32) for j in range(12)] == [
        2,
        4,
        7,
        10,
        12,
        15,
        18,
        20,
        23,
        26,
        28,
        31,
    ]
    assert pairs(16, 32, [7, 15, 23, 31]) == [(3, 0), (7, 1), (11, 2), (15, 3)]
    assert pairs(8, 4, [1, 3]) == [(3, 0), (7, 1)]  # the last of those with one counterpart
    assert pairs(2, 8, [1, 3, 7]) == [(0, 1), (1, 2)]


def test_no_counterpart_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"learns from layers \[3, 7\].*holds layers \[0, 1\]"):
        map_layers(2, 8, [0, 1])


@given(st.integers(1, 96), st.integers(1, 96))
def test_the_last_layer_learns_from_the_last_and_order_is_kept(student: int, teacher: int) -> None:
    counterparts = [teacher_layer(j, student, teacher) for j in range(student)]
    assert counterparts[-1] == teacher - 1
    assert counterparts == sorted(counterparts) and max(counterparts) < teacher
    found = pairs(student, teacher, list(range(teacher)))
    assert len({place for _, place in found}) == len(found) == len({j for j, _ in found})


def test_heads_by_hand() -> None:
    same = map_heads(4, 4, [0, 2])
    assert (same.student, same.teacher) == (((0,), (2,)), ((0,), (1,)))
    fewer = map_heads(2, 4, [0, 1, 2, 3])
    assert (fewer.student, fewer.teacher) == (((0,), (1,)), ((0, 1), (2, 3)))
    more = map_heads(4, 2, [0, 1])
    assert (more.student, more.teacher) == (((0, 1), (2, 3)), ((0,), (1,)))
    odd = map_heads(3, 4, [0, 1, 2, 3])
    assert (odd.student, odd.teacher) == (((0, 1, 2),), ((0, 1, 2, 3),))
    mean = map_heads(3, 4, [-1])
    assert (mean.student, mean.teacher) == (((0, 1, 2),), ((0,),))


def test_some_heads_for_a_student_of_another_width_are_refused() -> None:
    with pytest.raises(MismatchError, match=r"holds heads \[0, 2\] of 4.*student has 2"):
        map_heads(2, 4, [0, 2])


@given(st.integers(1, 64), st.integers(1, 64))
def test_every_head_is_in_one_group(student: int, teacher: int) -> None:
    groups = map_heads(student, teacher, list(range(teacher)))
    assert len(groups.student) == len(groups.teacher)
    assert sorted(h for group in groups.student for h in group) == list(range(student))
    assert sorted(h for group in groups.teacher for h in group) == list(range(teacher))
