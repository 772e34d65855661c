"""Requests and answers of a served teacher: bytes and back, and nothing else is taken for one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hosting import VOCAB, assert_same, selection
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekd.errors import DataError
from cachekd.teachers._message import pack, unpack
from cachekd.teachers._wire import (
    ScoreRequest,
    frame_size,
    pack_answer,
    pack_request,
    sizes,
    unpack_answer,
    unpack_request,
)
from cachekd.teachers.dummy import DummyTeacher


@st.composite
def requests(draw: Any) -> ScoreRequest:
    """Requests of a few documents, with any rows wanted and ids given to some."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    lengths = draw(st.lists(st.integers(2, 12), min_size=1, max_size=4))
    wanted = [random.random(n - 1) < draw(st.sampled_from([0, 0.5, 1])) for n in lengths]
    widths = [draw(st.integers(0, 3)) for _ in lengths]
    return ScoreRequest(
        source_id="source",
        selection=selection(
            k=draw(st.integers(1, VOCAB)),
            p=draw(st.sampled_from([0.3, 1.0])),
            temperatures=draw(st.sampled_from([(), (2.0,), (4.0, 0.5)])),
        ),
        documents=[random.integers(0, VOCAB, n).astype(np.int32) for n in lengths],
        wanted=wanted,
        given=[
            random.integers(0, VOCAB, (int(mask.sum()), j)).astype(np.int32) if j else None
            for mask, j in zip(wanted, widths, strict=True)
        ],
    )


def answered(request: ScoreRequest) -> Any:
    return DummyTeacher().score(request.documents, 12, request.selection, request.wanted)


@given(requests())
@settings(max_examples=40, deadline=None)
def test_a_request_comes_back_whole(request: ScoreRequest) -> None:
    data = pack_request(request)
    found = unpack_request(data)
    assert found.source_id == request.source_id and found.selection == request.selection
    for name in ("documents", "wanted", "given"):
        for left, right in zip(getattr(found, name), getattr(request, name), strict=True):
            assert (left is None) == (right is None)
            assert left is None or (left.shape == right.shape and (left == right).all())
    assert len(data) <= frame_size(request.selection) + sum(asked for asked, _ in sizes(request))


@given(requests())
@settings(max_examples=30, deadline=None)
def test_an_answer_comes_back_to_the_last_bit(request: ScoreRequest) -> None:
    targets = answered(request)
    data = pack_answer(request, targets)
    assert_same(unpack_answer(data, request), targets)
    assert len(data) <= frame_size(request.selection) + sum(most for _, most in sizes(request))


def one(**changes: Any) -> ScoreRequest:
    settings_of = {
        "source_id": "source",
        "selection": selection(),
        "documents": [np.int32([1, 2, 3, 4])],
        "wanted": [np.array([False, True, True])],
        "given": [None],
    }
    return ScoreRequest(**{**settings_of, **changes})


@pytest.mark.parametrize(
    "other",
    [
        one(source_id="another"),
        one(selection=selection(temperatures=(4.0,))),
        one(selection=selection(vocab_size=VOCAB + 1)),
        one(selection=selection(k=2)),
        one(documents=[np.int32([1, 2, 3])], wanted=[np.array([True, True])]),
        one(wanted=[np.array([True, True, False])]),
        one(
            documents=[np.int32([1, 2, 3, 4])] * 2, wanted=[np.ones(3, bool)] * 2, given=[None] * 2
        ),
    ],
)
def test_an_answer_to_another_request_is_refused(other: ScoreRequest) -> None:
    data = pack_answer(one(), answered(one()))
    with pytest.raises(DataError):
        unpack_answer(data, other)


def test_every_change_of_an_answer_is_found() -> None:
    data = pack_answer(one(), answered(one()))
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(DataError):
            unpack_answer(bytes(changed), one())
    for size in range(len(data)):
        with pytest.raises(DataError):
            unpack_answer(data[:size], one())


def test_an_answer_that_claims_much_allocates_nothing() -> None:
    head, body = unpack(pack_answer(one(), answered(one())))
    for shape in ([3, 1 << 40, len(body)], [3, 8, 1 << 40], [3, -1, len(body)], [1 << 40, 8, 1]):
        with pytest.raises(DataError):
            unpack_answer(pack({**head, "documents": [shape]}, [bytes(body)]), one())


def test_nan_in_an_answer_is_refused() -> None:
    (target,) = answered(one())
    for name in ("logprobs", "tail", "next_logprob", "entropy"):
        values = getattr(target, name).copy()
        values[-1] = np.nan
        data = pack_answer(one(), [replace(target, **{name: values})])
        with pytest.raises(DataError, match="NaN"):
            unpack_answer(data, one())
