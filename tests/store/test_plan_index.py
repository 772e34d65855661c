"""Plans cut the work the same way for everybody; the index finds every key and nothing else."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekd.data.digests import bytes_digest
from cachekd.data.packed import Keys
from cachekd.errors import CorruptCache
from cachekd.store.index import build_index, load_index
from cachekd.store.layout import dump_document, plan_name
from cachekd.store.plan import UNIT_BYTES, Plan, PlannedBatch, Unit, cut, load_plan, run_digest

lengths_of = st.lists(st.integers(2, 90), max_size=60)


@settings(max_examples=300, deadline=None)
@given(
    lengths_of,
    st.integers(1, 300),
    st.integers(1, 70),
    st.integers(1, 900),
    st.sampled_from([1, UNIT_BYTES // 200]),
)
def test_work_is_cut_by_law(
    lengths: list[int], batch_tokens: int, window: int, unit_tokens: int, bytes_per_token: int
) -> None:
    arguments: dict[str, Any] = {
        "batch_tokens": batch_tokens,
        "sort_window": window,
        "unit_tokens": unit_tokens,
        "bytes_per_token": bytes_per_token,
    }
    places, units = cut(lengths, **arguments)
    order = places.tolist()
    assert sorted(order) == list(range(len(lengths))), "every sample once"
    for start in range(0, len(lengths), window):
        part = order[start : start + window]
        assert sorted(part) == list(range(start, min(start + window, len(lengths))))
        assert [lengths[i] for i in part] == sorted((lengths[i] for i in part), reverse=True)
    place = 0
    for batch in (batch for unit in units for batch in unit):
        assert batch.first == place and batch.rows > 0
        held = [lengths[i] for i in order[place : place + batch.rows]]
        assert batch.padded_length == max(held)
        assert batch.rows * batch.padded_length <= batch_tokens or batch.rows == 1
        place += batch.rows
    assert place == len(lengths)
    limit = min(unit_tokens, UNIT_BYTES // bytes_per_token)
    sizes = [[batch.rows * batch.padded_length for batch in unit] for unit in units]
    assert all(sum(batches) >= limit for batches in sizes[:-1])
    assert all(sum(batches[:-1]) < limit for batches in sizes), "no batch more than needed"


def test_batches_are_filled() -> None:
    """Ten equal samples in a budget of three make four batches, not ten."""
    _, units = cut([10] * 10, batch_tokens=30, sort_window=4, unit_tokens=60, bytes_per_token=1)
    assert [[batch.rows for batch in unit] for unit in units] == [[3, 3], [3, 1]]


def plan(keys: int, units: tuple[Unit, ...]) -> Plan:
    return Plan(
        run="r" * 32,
        capture_id="c" * 32,
        sequence=3,
        keys=Keys.of(bytes([i]) * 16 for i in range(keys)),
        units=units,
        threads=2,
        samples=("ab" * 32,),
        skipped={"too long": 2},
        changed={},
    )


PLAN = plan(5, ((PlannedBatch(0, 2, 9), PlannedBatch(2, 1, 7)), (PlannedBatch(3, 2, 4),)))


@pytest.mark.parametrize("whole", [PLAN, plan(0, ())])
def test_a_plan_comes_back(whole: Plan) -> None:
    digest, data = whole.dump()
    assert load_plan(plan_name(digest), data) == whole
    assert whole.dump() == (digest, data)


def test_the_keys_of_a_unit() -> None:
    assert PLAN.unit_keys(0) == PLAN.keys[:3] and PLAN.unit_keys(1) == PLAN.keys[3:]


def test_an_altered_plan_is_refused() -> None:
    digest, data = PLAN.dump()
    for place in range(len(data)):
        damaged = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(CorruptCache, match="not the digest of its bytes"):
            load_plan(plan_name(digest), damaged)


@pytest.mark.parametrize(
    "change",
    [
        {"keys": "%%"},
        {"keys": base64.b64encode(b"x" * 64).decode()},
        {"keys": base64.b64encode(b"x" * 79).decode()},
        {"units": [[[2, 9], [1, 7]]]},
        {"units": [[[2, 9], [1, 7]], [[2, 4]], []]},
        {"units": [[[2, 9], [1, 7]], [[3, 4], [-1, 4]]]},
        {"units": 7},
        {"units": [[[2]]]},
        {"samples": None},
        {"run": None, "remove": "threads"},
    ],
)
def test_a_plan_that_was_signed_anew_must_still_make_sense(change: dict[str, Any]) -> None:
    content = json.loads(PLAN.dump()[1])
    for name in ("format", "version", "checksum", change.pop("remove", "checksum")):
        content.pop(name, None)
    data = dump_document("plan", {**content, **change})
    with pytest.raises(CorruptCache, match=r"is no plan|do not cover its keys"):
        load_plan(plan_name(bytes_digest(data)), data)


def test_a_run_is_its_samples_capture_and_cutting() -> None:
    base = run_digest([b"a" * 16, b"b" * 16], "c", {"batch_tokens": 1})
    assert base == run_digest((b"a" * 16, b"b" * 16), "c", {"batch_tokens": 1})
    others = [
        run_digest([b"b" * 16, b"a" * 16], "c", {"batch_tokens": 1}),
        run_digest([b"a" * 16], "c", {"batch_tokens": 1}),
        run_digest([b"a" * 16, b"b" * 16], "d", {"batch_tokens": 1}),
        run_digest([b"a" * 16, b"b" * 16], "c", {"batch_tokens": 2}),
    ]
    assert len({base, *others}) == 5


# Few values of a byte, with 0 and 255, so that prefixes, trailing zeros and signs are met.
keys = st.binary(min_size=16, max_size=16) | st.lists(
    st.sampled_from([0, 1, 127, 128, 255]), min_size=16, max_size=16
).map(bytes)
shards = st.dictionaries(
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.lists(keys, max_size=12, unique=True).map(sorted),
    max_size=5,
)


@settings(max_examples=200, deadline=None)
@given(shards, keys)
def test_the_index_finds_every_key_and_no_other(held: dict[str, list[bytes]], other: bytes) -> None:
    index = build_index(held)
    every = {key for part in held.values() for key in part}
    back = load_index("index/x", index.dump())
    assert len(index) == len(back) == len(every) and back.shards == index.shards == sorted(held)
    for key in every:
        shard, row = min((shard, part.index(key)) for shard, part in held.items() if key in part)
        place = (index.shards.index(shard), row)
        assert index.find(key) == back.find(key) == place, "the lower digest wins"
    if other not in every:
        assert index.find(other) is back.find(other) is None


def test_the_index_does_not_depend_on_the_order_of_shards() -> None:
    a, b = ("0a" * 32, [b"k" * 16, b"m" * 16]), ("b0" * 32, [b"k" * 16])
    assert build_index(dict([a, b])).dump() == build_index(dict([b, a])).dump()


def test_an_altered_index_is_refused_or_points_into_itself() -> None:
    """Its digest is checked before; this is what is left when that was made anew too."""
    index = build_index({"0a" * 32: [b"a" * 16, b"c" * 16], "b0" * 32: [b"b" * 16]})
    data = index.dump()
    for end in range(len(data)):
        with pytest.raises(CorruptCache, match=r"too short|does not fit its size"):
            load_index("index/x", data[:end])
    with pytest.raises(CorruptCache, match="does not fit its size"):
        load_index("index/x", data + b"\0")
    swapped = data.replace(b"a" * 16, b"d" * 16)
    twice = data.replace(b"a" * 16, b"b" * 16)
    nowhere = data[:-24] + b"\x02" + data[-23:]
    version = data[:8] + b"\x02" + data[9:]
    for damaged in (swapped, twice, nowhere, version, b"X" + data[1:]):
        with pytest.raises(CorruptCache, match=r"index/x: "):
            load_index("index/x", damaged)


def test_a_huge_head_takes_no_memory() -> None:
    data = bytearray(build_index({"0a" * 32: [b"a" * 16]}).dump())
    data[16:24] = (1 << 60).to_bytes(8, "little")
    with pytest.raises(CorruptCache, match="does not fit its size"):
        load_index("index/x", bytes(data))


def test_plans_of_another_sequence_are_other_plans() -> None:
    assert replace(PLAN, sequence=4).dump()[0] != PLAN.dump()[0]
