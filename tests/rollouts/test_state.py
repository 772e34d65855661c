"""What a checkpoint keeps of an on-policy run, and who goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from written import rollout

from cachekd.errors import ConfigError
from cachekd.objectives._rollouts import Returns, Rollouts
from cachekd.rollouts.engine import Engine
from cachekd.rollouts.state import load_engine, save_engine

COLLECTED = Rollouts(collect=4, returns=Returns())


class Scores:
    """A score cache that has counted something."""

    def __init__(self, rows: int = 0) -> None:
        self._state: Mapping[str, Any] = {"counts": {"rows": rows}, "seconds": {"teacher": 0.5}}

    def flush(self) -> None:
        """Nothing is buffered."""

    def state(self) -> Mapping[str, Any]:
        return self._state

    def restore(self, state: Mapping[str, Any]) -> None:
        self._state = state


def _engine(spec: Rollouts, rank: int | None = None) -> Engine:
    """A fresh engine, or one in the middle of a run as a process of this rank has it."""
    none: Any = None
    scores: Any = Scores(0 if rank is None else 10 + rank)
    engine = Engine(spec, write=none, reader=none, scores=scores, seed=3)
    if rank is None:
        return engine
    held = [rollout(2 * number + rank) for number in range(2)]
    if spec.replay:
        engine.buffer.push(held)
    else:
        engine._collection = {one.sample: one for one in held}
        engine._collected = (0, 5)
    engine.totals["fresh_sequences"] = 7 + rank
    if rank:
        engine.totals["replay_sequences"] = 2
    engine.measures.totals["rollouts"] = 3
    engine.measures.sums += 1 + rank
    engine.clock.seconds["generate"] = 1.5
    engine.schedule.phi = 0.25
    return engine


def _saved(spec: Rollouts, folder: Path, processes: int) -> None:
    for rank in range(processes):
        save_engine(_engine(spec, rank), folder, rank, processes)


def _loaded(spec: Rollouts, folder: Path, rank: int, processes: int) -> Engine:
    engine = _engine(spec)
    load_engine(engine, folder, rank, processes)
    return engine


@pytest.mark.parametrize("spec", [COLLECTED, Rollouts(replay=8)], ids=["collection", "buffer"])
def test_as_many_processes_go_on_each_with_its_own(tmp_path: Path, spec: Rollouts) -> None:
    _saved(spec, tmp_path, 2)
    for rank in range(2):
        engine, expected = _loaded(spec, tmp_path, rank, 2), _engine(spec, rank)
        assert engine.state() == expected.state()
        for part, rollouts in expected.held().items():
            assert [one.sample for one in engine.held()[part]] == [one.sample for one in rollouts]


def test_fewer_processes_take_what_all_counted_and_collected(tmp_path: Path) -> None:
    _saved(COLLECTED, tmp_path, 2)
    engine = _loaded(COLLECTED, tmp_path, 0, 1)
    assert engine.totals == {"fresh_sequences": 7 + 8, "replay_sequences": 2}
    assert engine.measures.totals == {"rollouts": 6} and set(engine.measures.sums) == {3.0}
    assert engine.state()["scores"] == {"counts": {"rows": 21}, "seconds": {"teacher": 1.0}}
    assert engine.clock.seconds["generate"] == 3.0 and engine.schedule.phi == 0.25
    assert engine._collected == (0, 5) and set(engine._collection) == {0, 1, 2, 3}


def test_more_processes_count_nothing_twice(tmp_path: Path) -> None:
    _saved(COLLECTED, tmp_path, 2)
    engines = [_loaded(COLLECTED, tmp_path, rank, 3) for rank in range(3)]
    assert [one.totals["fresh_sequences"] for one in engines] == [15, 0, 0]
    assert [one.measures.sums[0] for one in engines] == [3.0, 0.0, 0.0]
    assert [one.state()["scores"]["counts"]["rows"] for one in engines] == [21, 0, 0]
    for one in engines:
        assert one.schedule.phi == 0.25 and one._collected == (0, 5)
        assert set(one._collection) == {0, 1, 2, 3}


def test_a_collection_of_one_batch_is_over(tmp_path: Path) -> None:
    """Its number may be another's when batches are of other sizes."""
    spec = Rollouts(returns=Returns())
    _saved(spec, tmp_path, 2)
    engine = _loaded(spec, tmp_path, 0, 1)
    assert engine._collected is None and not engine._collection


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        (Rollouts(replay=8), "a replay buffer"),
        (Rollouts(collect=4, inner_epochs=2, returns=Returns()), "an order of its own"),
    ],
)
@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2)])
def test_what_belongs_to_processes_is_not_given_to_others(
    tmp_path: Path, spec: Rollouts, what: str, before: int, now: int
) -> None:
    _saved(spec, tmp_path, before)
    for rank in range(now):
        with pytest.raises(ConfigError, match=f"expected {before} processes.*found {now}.*{what}"):
            _loaded(spec, tmp_path, rank, now)


def test_files_of_earlier_processes_do_not_stay(tmp_path: Path) -> None:
    _saved(Rollouts(replay=8), tmp_path, 3)
    (tmp_path / "rng_state_2.pth").touch()
    _saved(Rollouts(replay=8), tmp_path, 1)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        *("rollouts_0.json", "buffer_0.safetensors", "collection_0.safetensors"),
        "rng_state_2.pth",
    }


def test_a_part_that_lacks_is_told(tmp_path: Path) -> None:
    _saved(COLLECTED, tmp_path, 2)
    (tmp_path / "rollouts_1.json").unlink()
    with pytest.raises(ConfigError, match="as many processes as before, or name another"):
        _loaded(COLLECTED, tmp_path, 0, 1)
