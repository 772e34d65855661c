"""Steps of all sides in turn, each in its own process.

In: jobs. Out: what each side took, or why it could not be measured. In every round each side takes
one step, in alternating order, so that what a machine does meanwhile falls on all alike. Where all
together do not fit into memory, they run one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from cachekd.costs.comparison.children import Child, ChildFailed
from cachekd.costs.comparison.jobs import (
    END,
    GO,
    Capture,
    Ended,
    Failure,
    Job,
    Ready,
    Started,
    Step,
)

Tell = Callable[[str, int, int], None]
"""Called with what is done (capture: tokens; steps: rounds), how many of it, and of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a side took.

    Attributes:
        started: its process, with libraries only.
        import_seconds: until it had them.
        load_seconds: from there until its first step could begin.
        ready: what it is.
        warmup: the steps that are left out, in the first of which things are set up.
        steps: those that count.
        ended: its peak of memory, and how it saved the student.
        exit_seconds: until its process had ended after that.
        cpu: processor time of the process.
        alternated: whether its steps were taken in turn with those of the others.
    """

    started: Started
    import_seconds: float
    load_seconds: float
    ready: Ready
    warmup: tuple[Step, ...]
    steps: tuple[Step, ...]
    ended: Ended
    exit_seconds: float
    cpu: float
    alternated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """A capture in its process.

    Attributes:
        started: the process, with libraries only.
        import_seconds: until it had them.
        load_seconds: after that those in which the teacher did not score.
        capture: what was captured.
        exit_seconds: until the process had ended after that.
        cpu: processor time of the process.
    """

    started: Started
    import_seconds: float
    load_seconds: float
    capture: Capture
    exit_seconds: float
    cpu: float


def capture(job: Job, tell: Tell) -> Captured | Failure:
    """Capture the sample, in a process of its own.

    Args:
        job: of the capture.
        tell: told the tokens that are scored.
    """
    with Child(job, lambda scoring: tell("capture", scoring.tokens, scoring.of)) as child:
        try:
            done = child.begin(Capture)
        except ChildFailed as error:
            return error.failure
        child.finish()
        return Captured(
            started=child.started,
            import_seconds=child.import_seconds,
            load_seconds=max(child.seconds - done.score_seconds, 0.0),
            capture=done,
            exit_seconds=child.exit_seconds,
            cpu=child.cpu,
        )


def take_turns(jobs: Sequence[Job], tell: Tell) -> dict[str, Taken | Failure]:
    """All sides in turn; again one after another, where one of them had no memory beside others.

    Args:
        jobs: one a side.
        tell: told the steps that are done.
    """
    found = _together(jobs, tell)
    if len(jobs) > 1 and any(_short(one) for one in found.values()):
        for job in jobs:
            found |= _together([job], tell)
    return found


def _short(found: Taken | Failure) -> bool:
    """Whether a side may do better alone: out of memory, or killed as systems do then."""
    return isinstance(found, Failure) and found.kind in ("memory", "killed")


def _together(jobs: Sequence[Job], tell: Tell) -> dict[str, Taken | Failure]:
    """Steps of these sides in turn; one that fails leaves the others alone."""
    failures: dict[str, Taken | Failure] = {}
    sides: dict[str, _Side] = {}
    config = jobs[0].config
    tell("steps", 0, config.discard + config.steps)
    with ExitStack() as stack:
        for job in jobs:
            side = _Side(stack.enter_context(Child(job)))
            if (failure := side.tried(side.begin)) is not None:
                failures[job.side] = failure
            else:
                sides[job.side] = side
        for number in range(config.discard + config.steps):
            names = list(sides) if number % 2 == 0 else list(reversed(sides))
            for name in names:
                if (failure := sides[name].tried(sides[name].step)) is not None:
                    failures[name] = failure
                    del sides[name]
            tell("steps", number + 1, config.discard + config.steps)
        found = dict(failures)
        for name, side in sides.items():
            failure = side.tried(side.end)
            found[name] = side.taken(len(jobs) > 1) if failure is None else failure
    return found


class _Side:
    """A process that takes steps, and what it has said so far."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._steps: list[Step] = []
        self._ready: Ready | None = None
        self._ended: Ended | None = None

    def tried(self, act: Callable[[], None]) -> Failure | None:
        """Do it; why it failed, and then the process is ended."""
        try:
            act()
        except ChildFailed as error:
            self._child.close()
            return error.failure
        return None

    def begin(self) -> None:
        """Load everything. Sides load one after another, undisturbed."""
        self._ready = self._child.begin(Ready)

    def step(self) -> None:
        """Take a step."""
        self._steps.append(self._child.ask(GO, Step))

    def end(self) -> None:
        """Leave the loop, and end."""
        self._ended = self._child.ask(END, Ended)
        self._child.finish()

    def taken(self, alternated: bool) -> Taken:
        """All that it took."""
        assert self._ready is not None and self._ended is not None, "it began and ended"
        child, discard = self._child, self._child.job.config.discard
        return Taken(
            started=child.started,
            import_seconds=child.import_seconds,
            load_seconds=child.seconds,
            ready=self._ready,
            warmup=tuple(self._steps[:discard]),
            steps=tuple(self._steps[discard:]),
            ended=self._ended,
            exit_seconds=child.exit_seconds,
            cpu=child.cpu,
            alternated=alternated,
        )
