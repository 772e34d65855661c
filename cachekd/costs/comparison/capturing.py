"""Figures of the capture: what its sample took, and what follows from it for the whole data.

In: `Measures`. Out: a `Quantity` for each thing that is told of the capture.
"""

from __future__ import annotations

import statistics

from cachekd.costs.comparison.jobs import Capture, Failure, ScoredBatch
from cachekd.costs.comparison.measures import Measures, why
from cachekd.costs.comparison.quantities import Quantities, Quantity, extrapolated, gap, measured
from cachekd.costs.comparison.rounds import Captured
from cachekd.costs.comparison.spread import median_error, noisy

_BATCHES = 4
"""Batches of a capture from which on what is set up is told from what each token takes."""

_OF_SAMPLE = (
    "import_seconds",
    "exit_seconds",
    "load_seconds",
    "tokens_per_second",
    "relative_error",
    "fixed_cpu_seconds",
    "cpu_seconds_per_token",
    "bytes_per_token",
    "peak_memory_bytes",
    "load_joules",
    "joules_per_token",
)
_OF_ALL_DATA = ("prepare_seconds", "prepare_cpu_seconds", "seconds", "cpu_seconds", "bytes")


def capture_quantities(measures: Measures) -> Quantities:
    """Quantities of the capture."""
    if isinstance(measures.captured, Failure):
        missing = gap(why("capture", measures.captured))
        return dict.fromkeys((*_OF_SAMPLE, *_OF_ALL_DATA), missing)
    documents = measures.documents
    found = {
        "prepare_seconds": measured(documents.seconds, "reading and tokenising the whole data"),
        "prepare_cpu_seconds": measured(documents.cpu, "processor time of that"),
        **_of_sample(measures, measures.captured),
    }
    return found | _of_all_data(found, measured(documents.tokens))


def _of_all_data(found: Quantities, tokens: Quantity) -> Quantities:
    """What the whole data would take."""
    return {
        "seconds": extrapolated(
            "import_seconds + prepare_seconds + load_seconds + tokens / tokens_per_second + "
            "exit_seconds",
            lambda rate, all, *fixed: sum(fixed) + all / rate,
            found["tokens_per_second"],
            tokens,
            found["import_seconds"],
            found["prepare_seconds"],
            found["load_seconds"],
            found["exit_seconds"],
        ),
        "cpu_seconds": extrapolated(
            "fixed_cpu_seconds + prepare_cpu_seconds + cpu_seconds_per_token x tokens",
            lambda fixed, prepare, each, all: fixed + prepare + each * all,
            found["fixed_cpu_seconds"],
            found["prepare_cpu_seconds"],
            found["cpu_seconds_per_token"],
            tokens,
        ),
        "bytes": extrapolated(
            "bytes_per_token x tokens",
            lambda each, all: each * all,
            found["bytes_per_token"],
            tokens,
        ),
    }


def _of_sample(measures: Measures, captured: Captured) -> Quantities:
    """What was measured of the sample's capture: `_OF_SAMPLE`, in this order."""
    capture = captured.capture
    fixed, each = apart(capture)
    fixed_cpu, each_cpu = _apart_cpu(capture)
    error = median_error([one.seconds / one.tokens for one in capture.batches], "batches")
    values = (
        measures.imports(),
        measures.ends(),
        measured(
            captured.load_seconds + fixed,
            "all of a capture but imports, scoring and writing, and what the batches of the first "
            "unit take over their tokens x their median seconds a token",
        ),
        measured(1 / each, "scored, packed and written, that left out", noisy=noisy(error)),
        error,
        measured(
            captured.cpu - capture.cpu_seconds + fixed_cpu,
            "processor time of imports, loading and the end",
        ),
        measured(each_cpu, "processor time, that left out"),
        measured(capture.bytes / capture.tokens, "of the sample's whole cache"),
        measures.peak(capture.peak_bytes, capture.device),
        *_joules_apart(capture),
    )
    return dict(zip(_OF_SAMPLE, values, strict=True))


def apart(capture: Capture) -> tuple[float, float]:
    """Seconds of scoring that do not grow with the data, and seconds of each token.

    fixed = seconds of the first unit's batches - their tokens x their median seconds a token: what
    is set up in the first and learned after it. Packing and writing follow the last of them and
    grow with the data. Of few batches a median says nothing: then nothing is fixed.
    """
    fixed = _over_usual([(batch.seconds, batch) for batch in capture.batches])
    return fixed, max(capture.score_seconds - fixed, 1e-9) / capture.tokens


def _apart_cpu(capture: Capture) -> tuple[float, float]:
    """The same of processor time, whose first batch holds loading."""
    fixed = _over_usual([(batch.cpu, batch) for batch in capture.batches])
    return fixed, max(capture.cpu_seconds - fixed, 0.0) / capture.tokens


def _over_usual(batches: list[tuple[float, ScoredBatch]]) -> float:
    """What batches took over their tokens x the median of a token; 0 of few."""
    if len(batches) < _BATCHES:
        return 0.0
    usual = statistics.median(amount / batch.tokens for amount, batch in batches)
    return max(sum(amount - batch.tokens * usual for amount, batch in batches), 0.0)


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
    first = capture.batches[0].tokens
    each = (capture.joules - capture.first_joules) / (capture.tokens - first)
    load = max(capture.first_joules - each * first, 0.0)
    return (
        measured(load, "NVML, until the first batch is done, less what a usual batch takes"),
        measured(each, "NVML, after the first batch"),
    )
