"""Tokens to rows: masks, borders, and their agreement."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekd.data.alignment import LossMask, response_rows, trained_rows, trained_spans
from cachekd.store.collected import collect
from cachekd.store.samples import keys_of, read_samples, write_samples
from cachekd.types import Role, Sample

ROLES = st.lists(st.sampled_from(list(Role)), min_size=1, max_size=12)


def mask(roles, prompt_length, mode):
    return trained_rows(np.array(roles, dtype=np.uint8), prompt_length, mode).tolist()


@given(prompt=st.integers(0, 9), response=st.integers(0, 9))
def test_response_rows_are_the_trained_rows(prompt, response):
    if prompt + response == 0:
        return
    roles = [Role.USER] * prompt + [Role.ASSISTANT] * response
    expected = [False] * (len(roles) - 1)
    for row in response_rows(prompt, response):
        expected[row] = True
    for mode in (LossMask.COMPLETION, LossMask.AUTO, LossMask.ASSISTANT):
        assert mask(roles, prompt, mode) == expected


@given(prompt=st.integers(1, 9), response=st.integers(1, 9))
def test_a_response_has_one_row_a_token(prompt, response):
    rows = response_rows(prompt, response)
    assert len(rows) == response
    assert rows[0] == prompt - 1
    assert rows[-1] == prompt + response - 2


def test_a_response_of_one_token_has_the_last_row_of_the_prompt():
    assert list(response_rows(3, 1)) == [2]
    assert mask([2, 2, 2, 3], 3, LossMask.AUTO) == [False, False, True]


def test_an_empty_prompt_leaves_the_first_token_without_a_row():
    assert list(response_rows(0, 3)) == [0, 1]
    assert list(response_rows(0, 0)) == []
    assert list(response_rows(0, 1)) == []


@given(roles=ROLES, prompt=st.none() | st.integers(0, 12), mode=st.sampled_from(list(LossMask)))
def test_every_mask_against_the_rule_token_by_token(roles, prompt, mode):
    def is_trained(index):
        role = roles[index]
        if mode is LossMask.ALL:
            return True
        if mode is LossMask.ASSISTANT:
            return role == Role.ASSISTANT
        if prompt is not None:
            return index >= prompt and role != Role.TEMPLATE
        if mode is LossMask.AUTO and Role.ASSISTANT not in roles[1:]:
            return role != Role.TEMPLATE
        return role == Role.ASSISTANT

    expected = [is_trained(index) for index in range(1, len(roles))]
    assert mask(roles, prompt, mode) == expected


@settings(deadline=None)  # the first example imports what tables take
@given(
    samples=st.lists(
        st.tuples(
            st.lists(st.sampled_from(list(Role)), min_size=2, max_size=9),
            st.none() | st.integers(0, 9),
        ),
        min_size=1,
        max_size=5,
    ),
    mode=st.sampled_from(list(LossMask)),
)
def test_spans_of_a_table_are_the_rows_of_each_sample(samples, mode):
    made = [
        Sample(
            input_ids=np.full(len(roles), number, np.int32),
            roles=np.array(roles, np.uint8),
            prompt_length=prompt,
        )
        for number, (roles, prompt) in enumerate(samples)
    ]
    keys = keys_of(made)
    ids = [bytes([i + 1]) * 16 for i in range(len(made))]
    data = write_samples(made, keys, ids, range(len(made)))
    table = collect([(read_samples("t", data), False)])
    starts, stops = trained_spans(table, mode)
    for i, sample in enumerate(made):
        trained = np.zeros(len(sample.roles), bool)
        for span in range(table.span_offsets[i], table.span_offsets[i + 1]):
            trained[starts[span] : stops[span]] = True
        expected = trained_rows(sample.roles, sample.prompt_length, mode)
        assert trained[1:].tolist() == expected.tolist() and not trained[0]


def test_completion_without_prompt_or_assistant_trains_nothing():
    assert mask([5, 5, 5], None, LossMask.COMPLETION) == [False, False]


@pytest.mark.parametrize("mode", list(LossMask))
def test_mask_has_one_entry_a_row(mode):
    result = trained_rows(np.array([5, 5, 5, 5], dtype=np.uint8), None, mode)
    assert result.shape == (3,)
    assert result.dtype == np.bool_
