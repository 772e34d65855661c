"""What was measured of one comparison, and the figures that follow from it for the whole data.

In: `Measures`. Out: a `Quantity` for each thing that is told of capture and sides. Times of an
epoch are of tokens: the median over steps of seconds a token, times the tokens of an epoch, so that
neither a disturbed step nor the lengths of the documents drawn shift them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cachekd.config import BenchmarkConfig
from cachekd.costs.comparison.documents import Documents
from cachekd.costs.comparison.jobs import SIDES, Capture, Failure, Step
from cachekd.costs.comparison.parameters import Parameters
from cachekd.costs.comparison.quantities import Quantity, extrapolated, gap, measured
from cachekd.costs.comparison.rounds import Captured, Taken

Quantities = dict[str, Quantity]
_BATCHES = 4
"""Batches of a capture from which on what is set up is told from what each token takes."""

EPOCH = "median seconds a token x tokens of an epoch"


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


def why(measures: Measures, name: str, failure: Failure) -> str:
    """A failure in words, for the one who reads the gap."""
    if failure.kind == "memory" and name == "live":
        return f"the teacher does not fit beside the student: {_first_line(failure.text)}"
    if failure.kind == "memory":
        return f"out of memory: {_first_line(failure.text)}"
    return _first_line(f"{failure.error}: {failure.text}" if failure.error else failure.text)


def capture_quantities(measures: Measures) -> Quantities:
    """Quantities of the capture."""
    if isinstance(measures.captured, Failure):
        missing = gap(why(measures, "capture", measures.captured))
        return dict.fromkeys((*_OF_CAPTURE, *_OF_ALL_DATA), missing)
    tokens, seconds = measured(measures.documents.tokens), measures.documents.seconds
    prepare = measured(seconds, "reading and tokenising the whole data")
    found = {"prepare_seconds": prepare, **_of_capture(measures.captured)}
    return found | {
        "seconds": extrapolated(
            "prepare_seconds + load_seconds + tokens / tokens_per_second",
            lambda prepare, load, rate, all: prepare + load + all / rate,
            prepare,
            found["load_seconds"],
            found["tokens_per_second"],
            tokens,
        ),
        "bytes": extrapolated(
            "bytes_per_token x tokens",
            lambda each, all: each * all,
            found["bytes_per_token"],
            tokens,
        ),
    }


_OF_CAPTURE = (
    "load_seconds",
    "tokens_per_second",
    "cpu_seconds_per_token",
    "bytes_per_token",
    "peak_memory_bytes",
    "load_joules",
    "joules_per_token",
)
_OF_ALL_DATA = ("prepare_seconds", "seconds", "bytes")


def _of_capture(captured: Captured) -> Quantities:
    """What was measured of the sample's capture: `_OF_CAPTURE`, in this order."""
    capture = captured.capture
    load, each = apart(captured)
    values = (
        measured(
            load,
            "all of a capture but scoring and writing, and what the batches of the first unit take "
            "over their tokens x their median seconds a token; libraries are imported already",
        ),
        measured(1 / each, "scored, packed and written, that left out"),
        measured(capture.cpu_seconds / capture.tokens, "processor time, loading included"),
        measured(capture.bytes / capture.tokens, "of the sample's whole cache"),
        measured(capture.peak_bytes, _memory(capture.device)),
        *_joules_apart(capture),
    )
    return dict(zip(_OF_CAPTURE, values, strict=True))


def apart(captured: Captured) -> tuple[float, float]:
    """Seconds of a capture that do not grow with the data, and seconds of each token.

    fixed = seconds of the first unit's batches - their tokens x their median seconds a token: what
    is set up in the first and learned after it. Packing and writing follow the last of them and
    grow with the data. Of few batches a median says nothing: then nothing is fixed but loading.
    """
    capture, batches = captured.capture, captured.capture.batches
    fixed = 0.0
    if len(batches) >= _BATCHES:
        usual = statistics.median(seconds / tokens for tokens, seconds in batches)
        fixed = sum(seconds - tokens * usual for tokens, seconds in batches)
    fixed = max(fixed, 0.0)
    each = max(capture.score_seconds - fixed, 1e-9) / capture.tokens
    return captured.load_seconds + fixed, each


def _joules_apart(capture: Capture) -> tuple[Quantity, Quantity]:
    """Energy until the teacher scores, and of each token; a gap where they cannot be told apart."""
    if capture.joules is None or capture.first_joules is None:
        missing = gap(capture.no_joules)
        return missing, missing
    if len(capture.batches) < _BATCHES:
        missing = gap(
            "the sample has too few batches to tell the energy of loading from that of scoring; "
            "take more --samples or a smaller --batch-tokens"
        )
        return missing, missing
    first, _ = capture.batches[0]
    each = (capture.joules - capture.first_joules) / (capture.tokens - first)
    load = max(capture.first_joules - each * first, 0.0)
    return (
        measured(load, "NVML, until the first batch is done, less what a usual batch takes"),
        measured(each, "NVML, after the first batch"),
    )


def side_quantities(measures: Measures, name: str) -> Quantities:
    """Quantities of a side; of the live one with the two parts of its step."""
    taken = measures.side(name)
    if isinstance(taken, Failure):
        names = (*_OF_STEPS, *_OF_EPOCH, *(_OF_TEACHER if name == "live" else ()))
        return dict.fromkeys(names, gap(why(measures, name, taken)))
    found, tokens = _of_steps(taken), epoch_tokens(measures, taken)
    steps = taken.steps
    found |= {
        "epoch_seconds": extrapolated(
            EPOCH, lambda s, n: s * n, found["seconds_per_token"], tokens
        ),
        "epoch_joules": extrapolated(
            "joules a step / tokens a step x tokens of an epoch",
            lambda j, n: j * len(steps) / sum(step.tokens for step in steps) * n,
            found["joules_per_step"],
            tokens,
        ),
    }
    return found | (_parts(steps, found, tokens) if name == "live" else {})


_OF_STEPS = (
    "step_seconds",
    "step_seconds_low",
    "step_seconds_high",
    "seconds_per_token",
    "cpu_seconds_per_token",
    "tokens_per_second",
    "data_wait_share",
    "peak_memory_bytes",
    "joules_per_step",
    "load_seconds",
)
_OF_EPOCH = ("epoch_seconds", "epoch_joules")
_OF_TEACHER = ("teacher_step_seconds", "student_step_seconds", "teacher_epoch_seconds")


def _of_steps(taken: Taken) -> Quantities:
    """What was measured of a side's steps: `_OF_STEPS`, in this order."""
    steps = taken.steps
    median = _median(steps, lambda step: step.seconds)
    each = _median(steps, lambda step: step.seconds / step.tokens)
    low, high = _quartiles([step.seconds for step in steps])
    waited = sum(step.wait for step in steps) / sum(step.seconds for step in steps)
    load = taken.load_seconds + max(taken.first.seconds - median, 0.0)
    values = (
        measured(median, f"median of {len(steps)} steps"),
        measured(low, "first quartile"),
        measured(high, "third quartile"),
        measured(each, "median"),
        measured(_median(steps, lambda step: step.cpu / step.tokens), "processor time, median"),
        measured(1 / each),
        measured(waited),
        measured(taken.ended.peak_bytes, _memory(taken.ready.device)),
        _joules(taken),
        measured(load, "models and samples, and what the first step takes over a usual one"),
    )
    return dict(zip(_OF_STEPS, values, strict=True))


def epoch_tokens(measures: Measures, taken: Taken) -> Quantity:
    """Tokens that an epoch of one student trains on."""
    documents = measures.documents
    return extrapolated(
        "tokens of all samples x share of the drawn tokens that are within the student's context",
        lambda all, kept, drawn: all * kept / drawn,
        measured(documents.sample_tokens),
        measured(taken.ready.tokens),
        measured(documents.drawn_tokens),
    )


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


def _parts(steps: Sequence[Step], found: Quantities, tokens: Quantity) -> Quantities:
    """The teacher's forward within a live step, and the rest of it: `_OF_TEACHER`."""
    teacher = _median(steps, lambda step: step.teacher)
    each = measured(_median(steps, lambda step: step.teacher / step.tokens))
    values = (
        measured(teacher, "body and head, within the step"),
        measured(found["step_seconds"].known - teacher, "step less the teacher's forward"),
        extrapolated(EPOCH, lambda s, n: s * n, each, tokens),
    )
    return dict(zip(_OF_TEACHER, values, strict=True))


def _joules(taken: Taken) -> Quantity:
    counts = [step.joules for step in taken.steps if step.joules is not None]
    if not counts:
        return gap(taken.ended.no_joules)
    if not taken.alternated:
        return measured(statistics.mean(counts), "NVML, mean over steps")
    return measured(
        statistics.mean(counts), "NVML, mean over steps; other sides held the GPU idle meanwhile"
    )


def _median(steps: Sequence[Step], of: Callable[[Step], float]) -> float:
    return statistics.median(map(of, steps))


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _memory(device: str) -> str:
    return "most allocated on the GPU" if device == "cuda" else "most resident, loading included"


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0]
