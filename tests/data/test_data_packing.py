"""Packing: whole samples, full use, the same result every time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekd.data.packing import pack
from cachekd.errors import ConfigError

LENGTHS = st.lists(st.integers(1, 20), max_size=60)


def best_fit_reference(lengths, capacity):
    """Best-fit decreasing by looking at every bin: the fullest that fits; of equals the newest."""
    bins = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [b for b in bins if b[0] >= lengths[index]]
        if not fitting:
            fitting = [[capacity, []]]
            bins.append(fitting[0])
        best = min(fitting, key=lambda b: b[0])
        best[0] -= lengths[index]
        best[1].append(index)
    return sorted(capacity - room for room, _ in bins)


@given(lengths=LENGTHS, capacity=st.integers(20, 50))
def test_every_sample_once_in_order_within_capacity(lengths, capacity):
    bins = pack(lengths, capacity)
    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in members) <= capacity for members in bins)
    assert all(members == sorted(members) for members in bins)
    assert [members[0] for members in bins] == sorted(members[0] for members in bins)


@given(lengths=LENGTHS, capacity=st.integers(20, 50))
def test_fills_as_well_as_plain_best_fit(lengths, capacity):
    filled = sorted(sum(lengths[i] for i in members) for members in pack(lengths, capacity))
    assert filled == best_fit_reference(lengths, capacity)


@given(lengths=LENGTHS)
def test_no_two_bins_could_be_one(lengths):
    sums = sorted(sum(lengths[i] for i in members) for members in pack(lengths, 40))
    assert len(sums) < 2 or sums[0] + sums[1] > 40


def test_many_samples():
    lengths = [1 + (i * 7919) % 512 for i in range(20000)]
    bins = pack(lengths, 512)
    assert len(bins) <= 1.01 * sum(lengths) / 512 + 1


def test_a_sample_longer_than_a_bin_is_refused():
    with pytest.raises(ConfigError, match=r"sample 1 has 9 tokens.*holds 8"):
        pack([3, 9], 8)


def test_nothing_packs_to_nothing():
    assert pack([], 8) == []
