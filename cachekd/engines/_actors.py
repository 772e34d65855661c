"""Actors of a Ray cluster: started, replaced when they die, ended.

In: what an actor takes, and what makes its worker. Out: slots with a living actor each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cachekd.engines import RemoteWorker, Told
from cachekd.engines._cluster import Room
from cachekd.errors import CachekdError, WorkerError

PLACED_SECONDS = 300.0  # a node may have to be started first
_MOST_DEATHS = 6  # in a row, of the actors of one slot, or as many as it did units


class UnitActor:
    """A worker in an actor's process; arguments and answers are those of `RemoteWorker`."""

    def __init__(self, make: Callable[[], RemoteWorker]) -> None:
        self._worker = make()

    def placed(self) -> bool:
        """Answers when the actor has found its place."""
        return True

    def load(self, opening: Any) -> None:
        """See `RemoteWorker`."""
        self._worker.load(opening)

    def try_teacher(self, opening: Any, samples: Any, units: Sequence[int]) -> Any:
        """See `RemoteWorker`."""
        return self._worker.try_teacher(opening, samples, units)

    def begin(self, opening: Any) -> None:
        """See `RemoteWorker`."""
        self._worker.begin(opening)

    def do(self, number: int, samples: Any) -> Told:
        """See `RemoteWorker`."""
        return self._worker.do(number, samples)


@dataclass(slots=True)
class Slot:
    """A place for an actor.

    Attributes:
        actor: the one that has it now.
        placed: an answer that comes when that one has found its place.
        deaths: of actors in a row that may be the fault of the place.
        done: units that its actors committed.
    """

    actor: Any
    placed: Any = None
    deaths: int = 0
    done: int = 0

    @property
    def most_deaths(self) -> int:
        """Deaths in a row with which it is given up; they cost no more than what was done."""
        return max(_MOST_DEATHS, self.done)


class Actors:
    """Slots with an actor each.

    Args:
        ray: the module, connected.
        room: what an actor takes, and how many there are.
        make: makes the worker of an actor, in its process.
    """

    def __init__(self, ray: Any, room: Room, make: Callable[[], RemoteWorker]) -> None:
        self.ray, self._make = ray, make
        self._remote = ray.remote(
            num_cpus=room.cpus,
            num_gpus=room.gpus,
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )(UnitActor)
        self.slots = [Slot(self._start()) for _ in range(room.actors)]

    def close(self) -> None:
        """End all actors."""
        for slot in self.slots:
            self.ray.kill(slot.actor)

    def replace(self, slot: Slot, error: Exception, *, blamed: bool = True) -> None:
        """Another actor in the place of one that died.

        Args:
            slot: the place.
            error: how the actor's end was told.
            blamed: whether it may be the fault of the place.

        Raises:
            WorkerError: too many died in a row.
        """
        slot.deaths += blamed
        if slot.deaths >= slot.most_deaths:
            raise WorkerError(f"{slot.deaths} actors died one after another: {short(error)}")
        self.ray.kill(slot.actor)
        slot.actor, slot.placed = self._start(), None

    def is_placed(self, slot: Slot) -> bool:
        """Whether the actor of a slot runs on some node."""
        if slot.placed is None:
            slot.placed = slot.actor.placed.remote()
        return bool(self.ray.wait([slot.placed], timeout=0)[0])

    def died(self, error: Exception) -> bool:
        """Whether an error is the end of an actor or its node, and not one that it raised."""
        kinds = self.ray.exceptions
        return isinstance(error, kinds.RayError) and not isinstance(error, kinds.RayTaskError)

    def _start(self) -> Any:
        return self._remote.remote(self._make)


def plain(error: Exception) -> Exception:
    """The error that an actor raised, without what Ray puts around it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return cause
    return error if isinstance(error, CachekdError) else WorkerError(short(error))


def short(error: Exception) -> str:
    """The first lines of what Ray says, as one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:400]


def no_place() -> WorkerError:
    """The error where no node has room."""
    return WorkerError(
        f"no actor found a place in {PLACED_SECONDS:g} s: the nodes of the Ray cluster are busy "
        "or gone (ray status). Nothing that was committed is lost: run the same command again"
    )
