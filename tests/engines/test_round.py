"""Units that kill their actors, places that are sick, and what is told of a run that ends early."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_ray import FakeRay
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.engines import Orders, Outcome, Told, _cluster
from cachekd.engines import ray as ray_engine
from cachekd.engines._actors import Actors
from cachekd.engines._claims import Claim
from cachekd.engines._cluster import Room
from cachekd.engines._round import Round
from cachekd.errors import Incomplete, WorkerError
from cachekd.store.retries import counted, since

RETRIES = 2
UNITS = 20


class Hand:
    """A worker that notes what it did."""

    def __init__(self, done: list[int]) -> None:
        self._done = done

    def begin(self, _: Any) -> None:
        """It needs nothing."""

    def do(self, number: int, _: Any) -> Told:
        self._done.append(number)
        return Told(warnings=["of the teacher"], happened={"retries": number})


def run(
    dies: Callable[[str, Sequence[Any]], bool],
    actors: int = 1,
    stop_asked: Callable[[list[int]], bool] = lambda _: False,
    claim: Callable[[int], Claim] = lambda _: Claim.OURS,
) -> tuple[Outcome, list[int]]:
    """What becomes of the units, and those that were done, in order."""
    done: list[int] = []
    crew = Actors(FakeRay(dies), Room(cpus=1, gpus=0.0, actors=actors), lambda: Hand(done))
    kit: Any = SimpleNamespace(opening=lambda _: None, samples=lambda _, numbers: numbers)
    orders = Orders(
        units=[(number, 10) for number in range(UNITS)],
        claim=claim,
        stop_asked=lambda: stop_asked(done),
        seconds_left=lambda: float("inf"),
        scored=lambda _: None,
    )
    return Round(crew, kit, None, orders, RETRIES).run(), done


def at(numbers: Sequence[int]) -> Callable[[str, Sequence[Any]], bool]:
    return lambda name, args: name == "do" and args[0] in numbers


@pytest.mark.parametrize("actors", [1, 3])
@pytest.mark.parametrize(
    "killers", [range(1, 8, 2), range(8), range(12, 20), [0, 19], range(0, 20, 3)]
)
def test_units_that_kill_are_named_and_all_others_are_done(
    killers: Sequence[int], actors: int
) -> None:
    """Wherever they stand: with retries behind all others they meet, and no place is closed."""
    outcome, done = run(at(killers), actors)
    assert sorted(done) == sorted(set(range(UNITS)) - set(killers))
    assert outcome.left == 0 and outcome.failed.keys() == set(killers)
    for why in outcome.failed.values():
        assert why.startswith("its actor died: ") and why.endswith(f"({RETRIES + 1} tries)")


def test_units_between_many_that_kill_are_done_before_the_last_place_is_given_up() -> None:
    killers = {*range(7), *range(13, UNITS)}
    outcome, done = run(at(killers))
    assert sorted(done) == list(range(7, 13))
    assert outcome.failed.keys() <= killers and len(outcome.failed) >= 6
    assert outcome.ended and outcome.left


def test_where_every_unit_kills_it_ends_soon_and_tells_at_which_actors_died() -> None:
    outcome, done = run(at(range(UNITS)))
    assert not done and outcome.left == UNITS
    assert len(outcome.failed) == 6 and outcome.ended.startswith("6 actors died one after another")
    assert all(why.endswith("(1 try)") for why in outcome.failed.values())


def test_actors_that_die_before_their_first_unit_are_no_units_fault() -> None:
    with pytest.raises(WorkerError, match="6 actors died one after another"):
        run(lambda name, _: name == "begin")


def test_a_place_where_nothing_lives_is_left_to_the_others() -> None:
    """One of two: its units are done by the other, as often as they were killed before."""
    calls: list[int] = []

    def dies(name: str, args: Sequence[Any]) -> bool:
        calls.append(0)
        return name == "begin" and len(calls) % 2 == 0

    outcome, done = run(dies, 2)
    assert sorted(done) == list(range(UNITS)) and not outcome.failed and not outcome.ended


def test_a_stop_keeps_the_names_of_units_that_failed() -> None:
    outcome, done = run(at([3]), stop_asked=lambda done: len(done) >= 6)
    assert outcome.left == UNITS - len(done) and outcome.failed.keys() == {3}


def test_a_unit_that_failed_here_and_was_done_elsewhere_is_not_named() -> None:
    asked: list[int] = []

    def claim(number: int) -> Claim:
        asked.append(number)
        return Claim.DONE if asked.count(number) == 2 else Claim.OURS

    outcome, done = run(at([3]), claim=claim)
    assert asked.count(3) == 2 and len(done) == UNITS - 1
    assert not outcome.failed and not outcome.left


def test_what_happened_in_actors_is_told_here(caplog: pytest.LogCaptureFixture) -> None:
    """Counts are added up; what all actors warn of is said once."""
    before = counted()
    _, done = run(at([]), 3)
    assert since(before) == {"retries": sum(done)}
    assert [record.getMessage() for record in caplog.records] == ["of the teacher"]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """A Ray in this process, for the engine too."""
    found = FakeRay(at([]))
    for module in (_cluster, ray_engine):
        monkeypatch.setattr(module, "ray_module", lambda: found)
    return found


def test_a_run_names_units_that_kill_and_goes_on_when_they_no_longer_do(
    family: Family, tmp_path: Path, fake: FakeRay
) -> None:
    data = write_rows(tmp_path / "data.jsonl", chat_rows(20))

    def capture(name: str, **further: Any) -> Any:
        small = {"threads": 1, "unit_tokens": 80, "batch_tokens": 80, "backend": "dummy"}
        places = {"data": (str(data),), "cache": str(tmp_path / name)}
        return cachekd.precompute(
            PrecomputeConfig(teacher=str(family.teacher), **places, **small, **further)
        )

    def killed(name: str, args: Sequence[Any]) -> bool:
        if name == "do" and args[0] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return name == "do" and args[0] == 2

    fake.dies = killed
    stop = r"^stopped by a signal; 1 unit failed each time it was tried: \d+ of \d+ units"
    with pytest.raises(Incomplete, match=stop) as stopped:
        capture("ray", engine="ray")
    told = str(stopped.value).splitlines()
    assert len(told) == 2 and told[1].startswith("unit 2: ") and told[1].endswith("(1 try)")
    fake.dies = at([2, 6, 8])
    with pytest.raises(Incomplete) as stopped:
        capture("ray", engine="ray")
    told = str(stopped.value).splitlines()
    units = len(list((tmp_path / "ray" / "units").iterdir()))
    assert told[0].startswith(f"3 units failed each time they were tried: {units} of {units + 3} ")
    assert [line.split(":")[0] for line in told[1:]] == ["unit 2", "unit 6", "unit 8"]
    assert all(line.endswith("(3 tries)") for line in told[1:])
    fake.dies = at([])
    assert capture("ray", engine="ray")["root"] == capture("local")["root"]
