"""The replay buffer: first in, first out; draws that resume; files that say what was written."""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written import rollout

from cachekd.errors import ConfigError, CorruptCache, StoreError
from cachekd.rollouts import Rollout
from cachekd.rollouts.replay import ReplayBuffer, load_rollouts, save_rollouts
from cachekd.store import disk
from cachekd.types import TopKLogits

SOME = [
    rollout(0, corrections=(1, 4)),
    rollout(1, prompt=1, response=1),
    rollout(2, prompt=5, response=7),
]


def _plain(value: Any) -> Any:
    """With arrays as dtype and bytes, so that every bit counts."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Rollout | TopKLogits):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    return value


def _numbers(rollouts: list[Rollout]) -> list[int]:
    return [one.sample for one in rollouts]


def test_the_oldest_go_first() -> None:
    buffer = ReplayBuffer(5)
    buffer.push([rollout(i) for i in range(3)])
    assert sorted(_numbers(buffer.draw(3, 0, 0))) == [0, 1, 2]
    buffer.push([rollout(i) for i in range(3, 8)])
    assert len(buffer) == 5 and sorted(_numbers(buffer.draw(5, 0, 0))) == [3, 4, 5, 6, 7]


def test_draws_are_uniform_without_replacement_and_of_seed_and_step() -> None:
    buffer = ReplayBuffer(10)
    buffer.push([rollout(i) for i in range(10)])
    drawn = [_numbers(buffer.draw(3, 4, step)) for step in range(2000)]
    assert all(len(set(one)) == 3 for one in drawn)
    counts = Counter(number for one in drawn for number in one)
    assert all(abs(counts[i] - 600) < 5 * (2000 * 0.3 * 0.7) ** 0.5 for i in range(10))
    pairs = Counter(tuple(sorted(one[:2])) for one in drawn)
    assert all(abs(count - 2000 / 45) < 5 * (2000 / 45) ** 0.5 for count in pairs.values())
    assert len(pairs) == 45
    assert drawn[7] == _numbers(buffer.draw(3, 4, 7)) != _numbers(buffer.draw(3, 5, 7))


def test_more_than_is_held_is_refused() -> None:
    buffer = ReplayBuffer(10)
    buffer.push(SOME)
    with pytest.raises(ConfigError, match="expected 4 sequences to draw from; found 3"):
        buffer.draw(4, 0, 0)


@pytest.mark.parametrize("rollouts", [SOME, SOME[1:2], []], ids=len)
def test_a_file_gives_back_every_bit(tmp_path: Path, rollouts: list[Rollout]) -> None:
    path = tmp_path / "rollouts.safetensors"
    save_rollouts(rollouts, path)
    found = load_rollouts(path)
    assert [_plain(one) for one in found] == [_plain(one) for one in rollouts]
    assert all(one.input_ids.flags.writeable for one in found), "tensors are made of them"
    assert not list(tmp_path.glob(".*")), "no temporary file stays"


def test_a_buffer_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    buffer, resumed, smaller = ReplayBuffer(6), ReplayBuffer(6), ReplayBuffer(2)
    buffer.push([rollout(i) for i in range(9)])
    save_rollouts(buffer.held(), tmp_path / "replay.safetensors")
    for other in (resumed, smaller):
        other.push(load_rollouts(tmp_path / "replay.safetensors"))
    assert sorted(_numbers(smaller.draw(2, 0, 0))) == [7, 8], "the newest"
    for one in (buffer, resumed):
        one.push([rollout(20), rollout(21)])
    for step in range(5):
        assert _numbers(buffer.draw(4, 1, step)) == _numbers(resumed.draw(4, 1, step))


def test_bytes_of_a_token(tmp_path: Path) -> None:
    """As the module says: 8 an entry, 20 + 4 T a row, 12 a token of the response."""
    one = rollout(response=500)
    save_rollouts([one], tmp_path / "a")
    save_rollouts([], tmp_path / "b")
    found = (tmp_path / "a").stat().st_size - (tmp_path / "b").stat().st_size
    assert abs(found - 8 * len(one.logits.ids) - (20 + 4 * 2 + 12) * 500) < 300


def test_a_write_that_fails_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rollouts.safetensors"
    save_rollouts(SOME[:1], path)

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("write", "sync", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(disk, name, full)
            with pytest.raises(StoreError, match="No space left"):
                save_rollouts(SOME, path)
        assert _numbers(load_rollouts(path)) == [0]
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_no_flip_and_no_cut_passes(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.safetensors"
    save_rollouts(SOME, path)
    whole = path.read_bytes()
    for at in (*range(0, len(whole), 7), len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(CorruptCache, match=r"rollouts\.safetensors.*Resume from another"):
            load_rollouts(path)
    assert whole.count(b'"shape":[3,11]') == 1  # the same bytes in another shape
    path.write_bytes(whole.replace(b'"shape":[3,11]', b'"shape":[11,3]'))
    with pytest.raises(CorruptCache, match="not what was written"):
        load_rollouts(path)
    for size in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptCache, match="cannot be read"):
            load_rollouts(path)


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    with pytest.raises(CorruptCache, match="there is no such file"):
        load_rollouts(tmp_path / "none")
    save_file({"a": np.zeros(3, np.int32)}, tmp_path / "other")
    with pytest.raises(CorruptCache, match="not what was written"):
        load_rollouts(tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": np.array([40], np.int32)}, "ids outside a vocabulary of 40"),
        ({"counts": np.array([1, -1, 1], np.int32)}, "negative size"),
        ({"counts": np.array([1, 1], np.int32)}, "counts: expected"),
        ({"policy": np.zeros((3, 1), np.int32)}, "policy: expected"),
        ({"documents": np.array([[0, 0, 4, 4, 0]])}, "without prompt or response"),
        ({"rows": np.zeros((2, 4), np.int32)}, "cannot be read"),
        ({"documents": np.zeros((1, 4), np.int64)}, "cannot be read"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    """As a program with an error would write them: with a digest that is right."""
    from cachekd.rollouts import replay

    made = replay._arrays
    monkeypatch.setattr(replay, "_arrays", lambda *args: {**made(*args), **change})
    save_rollouts([rollout(0)], tmp_path / "file")
    with pytest.raises(CorruptCache, match=message):
        load_rollouts(tmp_path / "file")
