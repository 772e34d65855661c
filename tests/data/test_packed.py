"""Packed keys and labels behave as lists of them; places are those a dictionary would find."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cachekd.data.packed import Keys, Labels, Places, has_copies

# Few values of a byte, so that keys are equal and end in zeros.
keys = st.lists(st.sampled_from([0, 1, 255]), min_size=16, max_size=16).map(bytes)
few = st.sampled_from([b"\0" * 16, b"a" + b"\0" * 15, b"a" * 16]) | keys


@given(st.lists(few, max_size=12), st.lists(few, max_size=12))
def test_keys_are_a_sequence_of_whole_digests(left: list[bytes], right: list[bytes]) -> None:
    packed, other = Keys.of(left), Keys.of(right)
    assert list(packed) == left == [packed[i] for i in range(len(left))]
    assert packed == left and (packed == other) == (left == right)
    assert packed[1:4] == left[1:4] and Keys.joined([packed, other]) == left + right
    assert packed.data.tobytes() == b"".join(left) and Keys.of(packed) is packed
    assert packed.take(range(len(left))[::-2]) == left[::-2]
    assert np.sort(packed.array).tolist() == [key.rstrip(b"\0") for key in sorted(left)]


@given(st.lists(few, max_size=12), st.lists(few, max_size=12), st.booleans())
def test_places_are_those_of_a_dictionary(
    held: list[bytes], asked: list[bytes], on_disk: bool
) -> None:
    places = Places(Keys.of(held), on_disk=on_disk)
    first = {key: i for i, key in reversed(list(enumerate(held)))}
    assert places.find(Keys.of(asked)).tolist() == [first.get(key, -1) for key in asked]
    assert places.firsts().tolist() == sorted(first.values())
    assert places.copies().tolist() == [held[:i].count(key) for i, key in enumerate(held)]
    for key in asked:
        assert places.all_of(key).tolist() == [i for i, one in enumerate(held) if one == key]


def test_many_keys_on_disk_are_mapped_and_the_same() -> None:
    rng = np.random.default_rng(0)
    many = [rng.bytes(16) for _ in range(1 << 17)] + [b"\0" * 16] * 3
    plain, spooled = Keys.of(many), Keys.spooled(many)
    assert spooled == plain and plain.spilled() == plain and has_copies(spooled)
    assert not has_copies(Keys.of(many[: 1 << 17]))
    for array in (spooled.array, plain.spilled().array):
        assert isinstance(array.base, np.memmap) and type(array) is np.ndarray
    mine, theirs = Places(spooled, on_disk=True), Places(plain)
    assert np.array_equal(mine.find(plain), theirs.find(plain))
    assert np.array_equal(mine.firsts(), theirs.firsts())
    assert np.array_equal(mine.copies(), theirs.copies())
    assert mine.all_of(many[-1]).tolist() == [1 << 17, (1 << 17) + 1, (1 << 17) + 2]


names = st.lists(st.sampled_from(["", "a", "b"]), max_size=8)


@given(st.lists(names, max_size=3))
def test_labels_are_a_sequence_of_strings(parts: list[list[str]]) -> None:
    packed = []
    for part in parts:
        own = sorted(set(part))
        packed.append(Labels(np.array([own.index(name) for name in part], np.int32), own))
        assert packed[-1] == part
    joined, whole = Labels.joined(packed), [name for part in parts for name in part]
    assert joined == whole and joined[1:3] == whole[1:3] and joined != [*whole, "c"]
    assert joined.take(range(len(whole))[::-1]) == whole[::-1]
