"""What goes between the benchmark and the processes that it measures.

In: settings. Out: a `Job` to a process; `Started`, `Scoring`, `Capture`, `Ready`, `Step`, `Ended`
or `Failure` from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cachekd.config import BenchmarkConfig

SIDES = ("cached", "live", "sft")
"""Ways to take a step: from the cache, with a live teacher, on the text alone."""


GO, END = "go", "end"
"""Words to a process that takes steps: take one; leave the loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a process is to do.

    Attributes:
        side: capture, or one of `SIDES`.
        config: settings of the benchmark.
        folder: of everything that is written; it goes when the benchmark ends.
    """

    side: str
    config: BenchmarkConfig
    folder: Path

    @property
    def sample(self) -> Path:
        """Documents that are captured."""
        return self.folder / "sample.jsonl"

    @property
    def cache(self) -> Path:
        """Where they are captured to."""
        return self.folder / "cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A process that has its libraries, and waits for a job.

    Attributes:
        peak_bytes: most memory so far, of a process that has loaded nothing yet.
    """

    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """A capture that goes on.

    Attributes:
        tokens, of: that are scored, and that are to be.
    """

    tokens: int
    of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch:
    """A batch of a capture: what it took from the end of the one before to its own.

    Attributes:
        tokens: of its documents.
        seconds: on the clock.
        cpu: processor time; of the first batch since the capture began, so with loading.
    """

    tokens: int
    seconds: float
    cpu: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """A capture that is done.

    Attributes:
        tokens: scored.
        score_seconds: from the first batch until all was written.
        batches: of the first unit, so that what is set up and learned between them is in one.
        cpu_seconds: processor time of the whole capture, its writers included, without imports.
        bytes: of the whole cache on disk.
        peak_bytes: most memory, of the GPU where there is one.
        device: kind of device that the teacher ran on.
        joules: of the whole capture, or None.
        first_joules: of these those until the first batch was done, loading included, or None.
        no_joules: why there are none.
    """

    tokens: int
    score_seconds: float
    batches: tuple[ScoredBatch, ...]
    cpu_seconds: float
    bytes: int
    peak_bytes: int
    device: str
    joules: float | None
    first_joules: float | None
    no_joules: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A side that is about to take its first step.

    Attributes:
        tokens: that an epoch of the sample trains on.
        batch: documents of a step.
        device: kind of device that the student is on.
    """

    tokens: int
    batch: int
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step that was taken.

    Attributes:
        seconds: from the end of the step before to the end of this one.
        tokens: that went through the student.
        wait: seconds of these in which the next batch was awaited.
        teacher: seconds of these of the teacher's forward.
        cpu: processor time of the step, which a busy machine does not change.
        joules: or None.
        opens: whether an epoch begins with it, and the loader with the epoch.
    """

    seconds: float
    tokens: int
    wait: float
    teacher: float
    cpu: float
    joules: float | None
    opens: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A side that has left its loop.

    Attributes:
        peak_bytes: most memory, of the GPU where there is one.
        no_joules: why there is no energy.
        save_seconds: of saving the student.
    """

    peak_bytes: int
    no_joules: str
    save_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a process could not do its work.

    Attributes:
        kind: memory, killed (by SIGKILL), died (of anything else), or error.
        text: what it said.
        error: name of the error.
    """

    kind: str
    text: str
    error: str = ""


Message = Started | Scoring | Capture | Ready | Step | Ended | Failure
