"""Engines: where the units of a run are scored and committed. One file an engine, a plugin.

What a unit is and how it is scored is capture's; an engine starts workers, gives them units, and
deals with those that die. It knows a job only as something to hand on (`Any` here), so that it
imports no torch. The same units give the same shards whichever engine ran.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from cachekd.config import PrecomputeConfig
from cachekd.engines._claims import Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a crew is to do, and what it asks on the way.

    Attributes:
        units: number and tokens of each unit, in the order they are to be begun.
        claim: asked before each unit.
        stop_asked: whether somebody wants an end; no unit is begun then.
        seconds_left: time that remains; a unit that would not fit is not begun.
        scored: told the tokens that are done.
    """

    units: Sequence[tuple[int, int]]
    claim: Callable[[int], Claim]
    stop_asked: Callable[[], bool]
    seconds_left: Callable[[], float]
    scored: Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of the units.

    Attributes:
        left: how many units wait that might be begun.
        failed: units that were tried and failed each time, with the last error; where an end came
            first, some may be tried again and are among those left too.
        ended: why no worker is left, where that is why units are; else empty.
    """

    left: int = 0
    failed: Mapping[int, str] = field(default_factory=dict)
    ended: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a remote worker tells with each unit that it committed.

    Attributes:
        warnings: that were logged since it told last, or since it began to load its teacher.
        happened: what networks did in that time, as `cachekd.store.retries` counts it.
    """

    warnings: Sequence[str]
    happened: Mapping[str, int]


class Crew(Protocol):
    """Workers of a run, each with a loaded teacher."""

    def try_teacher(self, job: Any) -> Any:
        """The job with the prior that its plan names, learned of its first batches.

        Raises:
            CachekdError: the teacher cannot be loaded, or gave what cannot be stored.
            Incomplete: a stop was asked for.
        """

    def run(self, job: Any, orders: Orders) -> Outcome:
        """Do the units; what it returns is committed."""


class Worker(Protocol):
    """A loaded teacher with what commits its units: see `cachekd.capture.worker`."""

    def try_teacher(self, job: Any) -> Any:
        """See `Crew`."""

    def begin(self, job: Any) -> None:
        """Say under which plan units are scored, before the first of them."""

    def do(self, number: int) -> None:
        """Score a unit and hand it to be committed.

        Raises:
            Incomplete: a stop was asked for; nothing of the unit is kept.
            CachekdError: this unit, or one before, went wrong.
        """

    def backlog_seconds(self) -> float:
        """Time that what was handed over will still take."""

    def finish(self) -> None:
        """Wait until everything is committed."""


class RemoteWorker(Protocol):
    """A worker in a process that has none of the run's data: see `cachekd.capture.remote`."""

    def load(self, opening: Any) -> None:
        """Load the teacher, if it is not loaded."""

    def try_teacher(self, opening: Any, samples: Any, units: Sequence[int]) -> Any:
        """What is learned of the first batches of these units, whose samples these are."""

    def begin(self, opening: Any) -> None:
        """Take units of this job from now on."""

    def do(self, number: int, samples: Any) -> Told:
        """Score and commit a unit."""


class Kit(Protocol):
    """What an engine starts workers with; capture gives it."""

    def here(self) -> AbstractContextManager[Worker]:
        """A worker in this process, with its teacher loaded."""

    def maker(self) -> Callable[[], RemoteWorker]:
        """Makes a worker in another process: plain code that can be sent there."""

    def stop_asked(self) -> bool:
        """Whether somebody wants an end."""

    def units(self) -> int:
        """How many units are missing."""

    def threads(self) -> int:
        """CPU threads of a teacher, as the plan says."""

    def opening(self, job: Any) -> Any:
        """What a remote worker must know of a job before its first unit: plain data."""

    def samples(self, job: Any, numbers: Sequence[int]) -> Any:
        """The samples of these units, for a remote worker."""

    def first_units(self, job: Any) -> Sequence[int]:
        """Units whose batches `RemoteWorker.try_teacher` may look at."""

    def learned(self, job: Any, answer: Any) -> Any:
        """The job with what `RemoteWorker.try_teacher` answered."""


class Engine(Protocol):
    """What ``PLUGIN`` of an engine's module is.

    Attributes:
        patience: seconds after which a signal that asks for an end interrupts; None: never.
        divides: whether every process that runs the command takes units itself, so that ranks
            count.
    """

    patience: float | None
    divides: bool

    def __init__(self, config: PrecomputeConfig) -> None:
        """Check the settings.

        Raises:
            ConfigError: an extra is not installed, or a setting cannot be used.
        """

    def crew(self, kit: Kit) -> AbstractContextManager[Crew]:
        """Workers; leaving the context ends them."""
