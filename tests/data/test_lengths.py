"""Samples beyond the limit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekd.data.alignment import LossMask, trained_rows
from cachekd.data.lengths import fit
from cachekd.errors import DataError
from cachekd.types import Role, Sample


def sample(length, prompt_length=None, roles=None):
    if roles is None:
        roles = [Role.TEXT] * length
        if prompt_length is not None:
            roles = [Role.USER] * prompt_length + [Role.ASSISTANT] * (length - prompt_length)
    return Sample(
        input_ids=np.arange(length, dtype=np.int32),
        roles=np.array(roles, dtype=np.uint8),
        prompt_length=prompt_length,
        source="a.jsonl",
        row=4,
    )


@given(length=st.integers(2, 40), limit=st.integers(2, 12))
def test_split_windows_hold_every_token_in_order(length, limit):
    fitted = fit(sample(length), limit, "split")
    ids = np.concatenate([window.input_ids for window in fitted.samples])
    dropped = length > limit and length % limit == 1
    assert np.array_equal(ids, np.arange(length - dropped))
    assert all(2 <= len(window.input_ids) <= limit for window in fitted.samples)
    assert ("last window of 1 token dropped" in fitted.changed) == dropped


@given(length=st.integers(2, 40), limit=st.integers(2, 12), data=st.data())
def test_split_trains_each_response_token_at_most_once(length, limit, data):
    prompt = data.draw(st.integers(0, length - 1))
    fitted = fit(sample(length, prompt), limit, "split")
    trained = [
        int(window.input_ids[1:][row])
        for window in fitted.samples
        for row in np.flatnonzero(trained_rows(window.roles, window.prompt_length, LossMask.AUTO))
    ]
    # The first token of a window has no row; every other response token has one.
    expected = [i for i in range(max(prompt, 1), length) if i % (limit if length > limit else 99)]
    assert trained == expected


def test_truncate_keeps_the_beginning():
    fitted = fit(sample(9, 3), 5, "truncate")
    assert fitted.samples[0].input_ids.tolist() == [0, 1, 2, 3, 4]
    assert fitted.samples[0].prompt_length == 3
    assert (fitted.skipped, fitted.changed) == ((), ("truncated",))


@pytest.mark.parametrize(
    "long",
    [sample(9, 6), sample(9, roles=[2] * 7 + [3] * 2), sample(9, 5)],
)
def test_truncate_leaves_out_what_lost_its_response(long):
    fitted = fit(long, 5, "truncate")
    assert (fitted.samples, fitted.skipped, fitted.changed) == ((), ("no response left",), ())


def test_split_leaves_out_windows_without_response():
    fitted = fit(sample(12, roles=[2] * 5 + [3] * 2 + [2] * 5), 4, "split")
    assert [window.input_ids[0] for window in fitted.samples] == [4]
    assert fitted.skipped == ("no response left",) * 2


def test_skip():
    fitted = fit(sample(9), 5, "skip")
    assert (fitted.samples, fitted.skipped) == ((), ("too long",))


def test_fail_names_row_lengths_and_choices():
    message = r"a\.jsonl row 4: expected at most 5 tokens, found 9.*truncate, split or skip"
    with pytest.raises(DataError, match=message):
        fit(sample(9), 5, "fail")


@pytest.mark.parametrize("on_long", ["fail", "truncate", "split", "skip"])
def test_a_sample_of_exactly_the_limit_stays(on_long):
    whole = sample(5)
    assert fit(whole, 5, on_long).samples == (whole,)
