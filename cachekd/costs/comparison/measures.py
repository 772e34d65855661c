"""What was measured of one comparison, and what is told of its data and models.

In: results of all processes. Out: `Measures`. Figures of the capture follow in `capturing`, those
of sides in `stepping`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cachekd.config import BenchmarkConfig
from cachekd.costs.comparison.documents import Documents
from cachekd.costs.comparison.jobs import SIDES, Failure
from cachekd.costs.comparison.parameters import Parameters
from cachekd.costs.comparison.quantities import Quantity, gap, measured
from cachekd.costs.comparison.rounds import Captured, Taken
from cachekd.costs.comparison.spread import NOISY_TIME, noisy_peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Everything that was measured.

    Attributes:
        config: settings.
        documents: what it was measured on.
        teacher, student: their parameters.
        captured: the capture, or why there is none.
        sides: what each of `SIDES` took, or why it took nothing.
    """

    config: BenchmarkConfig
    documents: Documents
    teacher: Parameters
    student: Parameters
    captured: Captured | Failure
    sides: Mapping[str, Taken | Failure]

    def side(self, name: str) -> Taken | Failure:
        """What a side took; where nothing was captured no side has documents to train on."""
        failed = Failure(kind="capture", text="the capture failed, so that no side was run")
        return self.sides.get(name, failed)

    def done(self) -> list[Captured | Taken]:
        """Processes that did their work."""
        found = [self.captured, *map(self.side, SIDES)]
        return [one for one in found if not isinstance(one, Failure)]

    def alike(self, seconds: Callable[[Captured | Taken], float], how: str) -> Quantity:
        """What all processes do alike: the median of them, so that one way is not lucky."""
        found = [seconds(one) for one in self.done()]
        usual = statistics.median(found)
        differ = max(found) - min(found) > 4 * NOISY_TIME * usual
        return measured(usual, f"{how}; median of {len(found)} processes", noisy=differ)

    def imports(self) -> Quantity:
        """Seconds until a process has its libraries."""
        return self.alike(lambda one: one.import_seconds, "libraries, of a process of its own")

    def ends(self) -> Quantity:
        """Seconds until a process is gone after its last answer."""
        return self.alike(lambda one: one.exit_seconds, "until a process had ended")

    def peak(self, peak: int, device: str) -> Quantity:
        """A peak of memory; on a CPU libraries count in it, and chance as far as they show it."""
        if device == "cuda":
            return measured(peak, "most allocated on the GPU")
        bare = [one.started.peak_bytes for one in self.done()]
        how = "most resident, libraries and loading included"
        return measured(peak, how, noisy=noisy_peak(peak, bare))


def why(name: str, failure: Failure) -> str:
    """A failure in words, for the one who reads the gap."""
    if failure.kind == "memory" and name == "live":
        return f"the teacher does not fit beside the student: {_first_line(failure.text)}"
    if failure.kind == "memory":
        return f"out of memory: {_first_line(failure.text)}"
    return _first_line(f"{failure.error}: {failure.text}" if failure.error else failure.text)


def steps_per_epoch(measures: Measures) -> int | None:
    """Steps of an epoch of the whole data, or None where no side ran."""
    taken = next((one for one in map(measures.side, SIDES) if isinstance(one, Taken)), None)
    return None if taken is None else math.ceil(measures.documents.samples / taken.ready.batch)


def active_ratio(measures: Measures) -> Quantity:
    """Active parameters of the teacher over those of the student."""
    for who, of in (("teacher", measures.teacher), ("student", measures.student)):
        if of.active is None:
            return gap(f"active parameters of the {who} are not known: {of.why}")
    assert measures.teacher.active is not None and measures.student.active is not None
    return measured(measures.teacher.active / measures.student.active, "counted")


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0]
