"""Scalars of rows: exact beside exact values, else within half a step; codes are stable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ragged import header, made_up

from cachekd.codecs import CodecHeader
from cachekd.codecs._scalars import pack_scalars, scalar_streams, unpack_scalars
from cachekd.errors import CorruptCache
from cachekd.types import TopKLogits

HEAD = header(9, temperatures=(0.5, 2.0))
real = st.floats(-1e4, 0, width=32)


def there_and_back(head: CodecHeader, record: TopKLogits) -> list[np.ndarray]:
    streams = pack_scalars(record, head)
    assert len(streams) == scalar_streams(head)
    found = unpack_scalars([streams], head)
    assert all(values.dtype == np.float32 for values in found)
    return found


def with_scalars(head: CodecHeader, tail: list[float], values: list[float]) -> TopKLogits:
    array = np.float32(values)
    lognorm = {1.0: np.zeros_like(array), 0.5: -array, 2.0: array}
    base = made_up(head, [3] * len(values))
    return replace(base, tail=np.float32(tail), next_logprob=array, entropy=-array, lognorm=lognorm)


@given(st.lists(real, min_size=1, max_size=20))
def test_fixed_point(values: list[float]) -> None:
    record = with_scalars(HEAD, [-1.0] * len(values), values)
    found = there_and_back(HEAD, record)
    want = [record.next_logprob, record.entropy, record.lognorm[0.5], record.lognorm[2.0]]
    for got, true, scale in zip(found[1:], want, (64, 64, 256, 256), strict=True):
        assert (np.abs(got.astype(float) - true) <= 0.5 / scale + 1e-7 * np.abs(true)).all()
    again = there_and_back(
        HEAD,
        replace(record, tail=found[0], next_logprob=found[1], entropy=found[2],
                lognorm={0.5: found[3], 2.0: found[4]}),
    )  # fmt: skip
    assert all(a.tobytes() == b.tobytes() for a, b in zip(again, found, strict=True))


@given(st.lists(st.floats(-90, 0, width=32), min_size=1, max_size=20))
def test_tails_within_half_a_step_of_log_odds(tails: list[float]) -> None:
    record = with_scalars(HEAD, tails, [0.0] * len(tails))
    for true, found in zip(tails, there_and_back(HEAD, record)[0].tolist(), strict=True):
        mass = min(max(np.exp(true), 1.0131e-6), 0.99752)
        odds, got = np.log(mass / (1 - mass)), np.log(np.exp(found) / -np.expm1(found))
        assert abs(odds - got) <= 19.8 / 252 / 2 + 1e-3


def test_tails_of_all_and_of_nothing() -> None:
    tails = [-np.inf, 0.0, 1e-7, -1e-9, -1e4]
    whole = there_and_back(HEAD, with_scalars(HEAD, tails, [0.0] * 5))[0]
    assert whole[0] == whole[4] == -np.inf and (whole[1:4] == whole[1]).all()
    assert -0.003 < whole[1] < 0, "a head is never left without mass"
    empty = made_up(HEAD, [0, 0])
    assert there_and_back(HEAD, empty)[0].tolist() == [0.0, 0.0]
    drawn = header(9, samples=5)
    assert there_and_back(drawn, made_up(drawn, [3, 0]))[0].tolist() == [0.0, 0.0]
    mixed = header(9, tau=0.5)
    record = made_up(mixed, [3])
    record = replace(record, weights=np.full(3, 0.5, np.float32), tail=np.zeros(1, np.float32))
    assert there_and_back(mixed, record)[0].tolist() == [0.0]


def test_values_without_end_are_held() -> None:
    record = with_scalars(HEAD, [0.0], [-np.inf])
    found = there_and_back(HEAD, record)
    assert all(np.isfinite(values).all() for values in found)
    assert found[1][0] == -(2.0**31) / 64


def test_beside_exact_values_every_bit_is_kept() -> None:
    head = header(9, "float16", temperatures=(0.5, 2.0))
    record = with_scalars(head, [-np.inf, -1e-30, 0.0], [-1 / 3, -3e38, -1e-40])
    found = there_and_back(head, record)
    want = [record.tail, record.next_logprob, record.entropy, *map(record.lognorm.get, (0.5, 2.0))]
    assert [values.tobytes() for values in found] == [values.tobytes() for values in want]


def test_a_code_of_no_tail_is_refused() -> None:
    streams = pack_scalars(made_up(HEAD, [3]), HEAD)
    streams[0] = np.array([255])
    with pytest.raises(CorruptCache, match="no such code"):
        unpack_scalars([streams], HEAD)
