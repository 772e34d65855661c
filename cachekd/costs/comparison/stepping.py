"""Figures of a side: its steps, what a run of it takes beside its epochs, and an epoch.

In: `Measures`. Out: a `Quantity` for each thing that is told of a side. Times of an epoch are of
tokens: all counted seconds over all counted tokens, times the tokens of an epoch, so that the sum
of many steps is what they take, and lengths of the documents drawn do not shift it. Steps with
which an epoch begins are told apart: the sample's epochs are shorter than those of the data.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from cachekd.costs.comparison.jobs import Failure, Step
from cachekd.costs.comparison.measures import Measures, why
from cachekd.costs.comparison.quantities import Quantities, Quantity, extrapolated, gap, measured
from cachekd.costs.comparison.rounds import Taken
from cachekd.costs.comparison.spread import noisy, rate, relative_error

EPOCH = "seconds_per_token x tokens of an epoch + epoch_start_seconds, where that is known"
FIXED = "import_seconds + load_seconds + warmup_seconds + save_seconds + exit_seconds"

_OF_STEPS = (
    "step_seconds",
    "step_seconds_low",
    "step_seconds_high",
    "seconds_per_token",
    "relative_error",
    "tokens_per_second",
    "data_wait_share",
    "peak_memory_bytes",
    "joules_per_step",
)
_OF_RUN = (
    "import_seconds",
    "load_seconds",
    "warmup_seconds",
    "save_seconds",
    "exit_seconds",
    "epoch_start_seconds",
    "fixed_seconds",
)
_OF_PROCESSOR = ("cpu_seconds_per_token", "fixed_cpu_seconds", "epoch_cpu_seconds")
_OF_EPOCH = ("epoch_seconds", "epoch_joules")
_OF_TEACHER = ("teacher_step_seconds", "student_step_seconds", "teacher_epoch_seconds")


def side_quantities(measures: Measures, name: str) -> Quantities:
    """Quantities of a side; of the live one with the two parts of its step."""
    taken = measures.side(name)
    if isinstance(taken, Failure):
        of_teacher = _OF_TEACHER if name == "live" else ()
        names = (*_OF_STEPS, *_OF_RUN, *_OF_PROCESSOR, *_OF_EPOCH, *of_teacher)
        return dict.fromkeys(names, gap(why(name, taken)))
    tokens = epoch_tokens(measures, taken)
    found = _of_steps(measures, taken) | _of_run(measures, taken)
    found |= _of_processor(taken, tokens)
    found |= _of_epoch(taken.steps, found, tokens)
    return found | (_of_teacher(taken.steps, found, tokens) if name == "live" else {})


def _of_steps(measures: Measures, taken: Taken) -> Quantities:
    """What was measured of a side's steps: `_OF_STEPS`, in this order."""
    steps, usual = taken.steps, within(taken.steps)
    low, high = _quartiles([step.seconds for step in steps])
    seconds, tokens = [step.seconds for step in usual], [step.tokens for step in usual]
    error, each = relative_error(seconds, tokens, "steps"), rate(seconds, tokens)
    is_noisy = noisy(error)
    values = (
        measured(_median(steps), f"median of {len(steps)} steps", noisy=is_noisy),
        measured(low, "first quartile"),
        measured(high, "third quartile"),
        measured(each, "mean over the steps with which no epoch begins", noisy=is_noisy),
        error,
        measured(1 / each, noisy=is_noisy),
        measured(sum(step.wait for step in steps) / sum(step.seconds for step in steps)),
        measures.peak(taken.ended.peak_bytes, taken.ready.device),
        _joules(taken),
    )
    return dict(zip(_OF_STEPS, values, strict=True))


def _of_run(measures: Measures, taken: Taken) -> Quantities:
    """What a run takes beside its epochs: `_OF_RUN`, in this order."""
    of = _seconds
    parts = (
        measures.imports(),
        measured(taken.load_seconds, "models and samples, until a first step could begin"),
        measured(over_usual(taken.warmup, taken.steps, of), "first steps, over usual ones"),
        measured(taken.ended.save_seconds, "saving the student at the end"),
        measures.ends(),
    )
    fixed = extrapolated(FIXED, lambda *terms: sum(terms), *parts)
    return dict(zip(_OF_RUN, (*parts, _epoch_start(taken.steps, of), fixed), strict=True))


def _of_processor(taken: Taken, tokens: Quantity) -> Quantities:
    """The same in processor time, without that of loader workers: `_OF_PROCESSOR`."""
    usual = within(taken.steps)
    each = measured(
        rate([step.cpu for step in usual], [step.tokens for step in usual]),
        "processor time, mean over the steps with which no epoch begins",
    )
    of_steps = sum(step.cpu for step in (*taken.warmup, *taken.steps))
    fixed = taken.cpu - of_steps + over_usual(taken.warmup, taken.steps, _cpu)
    start = _epoch_start(taken.steps, _cpu).value or 0.0
    values = (
        each,
        measured(fixed, "processor time of all but usual steps"),
        extrapolated(
            "cpu_seconds_per_token x tokens of an epoch + that of its start, where it is known",
            lambda s, n: s * n + start,
            each,
            tokens,
        ),
    )
    return dict(zip(_OF_PROCESSOR, values, strict=True))


def _of_epoch(steps: Sequence[Step], found: Quantities, tokens: Quantity) -> Quantities:
    """An epoch: `_OF_EPOCH`."""
    start = found["epoch_start_seconds"].value or 0.0
    return {
        "epoch_seconds": extrapolated(
            EPOCH, lambda s, n: s * n + start, found["seconds_per_token"], tokens
        ),
        "epoch_joules": extrapolated(
            "joules a step / tokens a step x tokens of an epoch",
            lambda j, n: j * len(steps) / sum(step.tokens for step in steps) * n,
            found["joules_per_step"],
            tokens,
        ),
    }


def _of_teacher(steps: Sequence[Step], found: Quantities, tokens: Quantity) -> Quantities:
    """The teacher's forward within a live step, and the rest of it: `_OF_TEACHER`."""
    teacher = statistics.median(step.teacher for step in steps)
    is_noisy = found["seconds_per_token"].noisy
    each = rate([step.teacher for step in steps], [step.tokens for step in steps])
    values = (
        measured(teacher, "body and head, within the step", noisy=is_noisy),
        measured(
            found["step_seconds"].known - teacher,
            "step less the teacher's forward",
            noisy=is_noisy,
        ),
        extrapolated(
            "mean teacher's seconds a token x tokens of an epoch",
            lambda s, n: s * n,
            measured(each, noisy=is_noisy),
            tokens,
        ),
    )
    return dict(zip(_OF_TEACHER, values, strict=True))


def within(steps: Sequence[Step]) -> list[Step]:
    """Steps with which no epoch begins; all where each begins one."""
    return [step for step in steps if not step.opens] or list(steps)


def over_usual(some: Sequence[Step], steps: Sequence[Step], of: Callable[[Step], float]) -> float:
    """What some steps took over what as many tokens take in usual steps, 0 at least."""
    usual = within(steps)
    each = rate([of(step) for step in usual], [step.tokens for step in usual])
    return max(sum(of(step) - each * step.tokens for step in some), 0.0)


def _epoch_start(steps: Sequence[Step], of: Callable[[Step], float]) -> Quantity:
    """What the first step of an epoch takes over a usual one: the loader begins with it."""
    first = [step for step in steps if step.opens]
    if not first or len(first) == len(steps):
        return gap(
            "what an epoch takes to begin: within the measured steps "
            + ("none began" if not first else "each began one")
        )
    each = over_usual(first, steps, of) / len(first)
    return measured(each, "first steps of an epoch, over usual ones")


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


def _joules(taken: Taken) -> Quantity:
    counts = [step.joules for step in taken.steps if step.joules is not None]
    if not counts:
        return gap(taken.ended.no_joules)
    if not taken.alternated:
        return measured(statistics.mean(counts), "NVML, mean over steps")
    return measured(
        statistics.mean(counts), "NVML, mean over steps; other sides held the GPU idle meanwhile"
    )


def _seconds(step: Step) -> float:
    return step.seconds


def _cpu(step: Step) -> float:
    return step.cpu


def _median(steps: Sequence[Step]) -> float:
    return statistics.median(step.seconds for step in steps)


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
