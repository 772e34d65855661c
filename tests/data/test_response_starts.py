"""Where the response of a sample begins, of many at once."""

from __future__ import annotations

import numpy as np
import pytest

from cachekd.data.alignment import response_starts
from cachekd.store.collected import collect
from cachekd.store.samples import read_samples, write_samples
from cachekd.types import Role, Sample

A, U, T = Role.ASSISTANT, Role.USER, Role.TEMPLATE


@pytest.mark.parametrize(
    ("roles", "prompt", "start"),
    [
        ([T, U, T, A, A], None, 3),
        ([T, U, T, A, T, U, T, A, A], None, 7),
        ([T, U, T, A, T], None, 3),
        ([T, U, T, A, A], 2, 2),
        ([A, A, A], None, -1),
        ([U, U, U], None, -1),
        ([U, U, U], 3, -1),
        ([U, U, U], 0, -1),
    ],
)
def test_by_border_or_last_assistant_turn(
    roles: list[Role], prompt: int | None, start: int
) -> None:
    other = Sample(input_ids=np.arange(3, dtype=np.int32), roles=np.array([U, A, A], np.uint8))
    sample = Sample(
        input_ids=np.arange(len(roles), dtype=np.int32),
        roles=np.array(roles, np.uint8),
        prompt_length=prompt,
    )
    samples = [other, sample, other]
    names = [bytes([i]) * 16 for i in range(3)]
    table = collect([(read_samples("s", write_samples(samples, names, names, range(3))), False)])
    assert response_starts(table).tolist() == [1, start, 1]
