"""From runs to a table and to verdicts: which orderings of a paper hold at this size.

In: runs (a way, a seed, figures) and orderings. Out: rows of means and deviations over seeds, a
verdict on each ordering by a stated rule, and both as Markdown. Nothing is run here.

Ways are compared in pairs of one seed (the same order of samples and the same draws); d is how much
better the one is, m the mean of d over seeds, s its standard error:

    better      holds: m > 2 s         does not hold: m < -2 s
    not worse   holds: m - 2 s > -t    does not hold: m + 2 s < -t
    same        holds: |m| <= n        does not hold: |m| - 2 s > n

with t a share of the other's mean, and n the other's deviation over seeds.

All else is "within noise". With three seeds 2 s is about one chance in six to be wrong: the
rule says what stands out of the noise, no more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

HOLDS, FAILS, NOISE = "holds", "does not hold", "within noise"
MORE_IS_BETTER = {
    **dict.fromkeys(("rouge_l", "distinct_4"), True),
    **dict.fromkeys(("loss", "kl", "sequence_reverse_kl", "excess"), False),
}
"""Of each figure that orderings speak of whether more is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One trained student: figures by name, None where one could not be had."""

    way: str
    seed: int
    figures: Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordering:
    """What a paper says of two ways.

    Attributes:
        better, worse: names of ways.
        metric: a figure of their runs; the last word says which way is better.
        source: where the paper says so.
        rule: better, not worse or same; see the module's text.
        tolerance: not worse: share of the mean of ``worse``.
    """

    better: str
    worse: str
    metric: str
    source: str
    rule: str = "better"
    tolerance: float = 0.0

    @property
    def statement(self) -> str:
        """The ordering as a sentence."""
        words = {
            "better": "is better than",
            "not worse": f"is not worse (by {self.tolerance:.0%}) than",
            "same": "is within seed noise of",
        }
        return f"{self.better} {words[self.rule]} {self.worse} in {self.metric}"


def summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each way: number of seeds, and of each figure mean, deviation and values."""
    rows = []
    for way in dict.fromkeys(run.way for run in runs):
        own = [run for run in runs if run.way == way]
        names = dict.fromkeys(name for run in own for name in run.figures)
        figures = {name: _spread([run.figures.get(name) for run in own]) for name in names}
        rows.append({"way": way, "seeds": [run.seed for run in own], "figures": figures})
    return rows


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and sample deviation; none where a value is missing."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    whole = len(known) == len(values)
    return {
        "mean": mean(known) if whole else None,
        "deviation": stdev(known) if whole and len(known) > 1 else None,
        "values": list(values),
    }


def judged(ordering: Ordering, runs: Sequence[Run]) -> dict[str, Any]:
    """The verdict on an ordering, with the figures that it follows from.

    Raises:
        KeyError: nothing says whether more or less of the metric is better.
    """
    sign = 1.0 if MORE_IS_BETTER[ordering.metric.split()[-1]] else -1.0
    others = [run for run in runs if run.way == ordering.worse]
    values = {run.seed: run.figures.get(ordering.metric) for run in others}
    pairs = []
    for run in runs:
        one, other = run.figures.get(ordering.metric), values.get(run.seed)
        if run.way == ordering.better and one is not None and other is not None:
            pairs.append((one, other))
    told = {"statement": ordering.statement, "source": ordering.source, "rule": ordering.rule}
    if len(pairs) < 2:
        return {**told, "pairs": len(pairs), "verdict": "not judged: fewer than two seeds"}
    ahead = [sign * (one - other) for one, other in pairs]
    middle, error = mean(ahead), stdev(ahead) / math.sqrt(len(ahead))
    return {
        **told,
        "pairs": len(pairs),
        "mean": middle,
        "standard_error": error,
        "verdict": _verdict(ordering, middle, error, [other for _, other in pairs]),
    }


def _verdict(ordering: Ordering, middle: float, error: float, others: Sequence[float]) -> str:
    if ordering.rule == "same":
        noise = stdev(others)
        holds, fails = abs(middle) <= noise, abs(middle) - 2 * error > noise
    else:
        margin = 0.0 if ordering.rule == "better" else ordering.tolerance * abs(mean(others))
        holds = (middle > 2 * error) if not margin else (middle - 2 * error > -margin)
        fails = middle + 2 * error < -margin
    return HOLDS if holds else FAILS if fails else NOISE


def markdown(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Rows of `summary` as a Markdown table.

    Args:
        rows: of `summary`.
        columns: figures to show, and the heading of each.
    """
    lines = [["", *columns.values()]]
    for row in rows:
        lines.append([row["way"], *(_cell(row["figures"].get(name)) for name in columns)])
    return _table(lines)


def markdown_orderings(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Verdicts of `judged` as a Markdown table."""
    lines = [["ordering", "source", "difference", "verdict"]]
    for one in verdicts:
        known = "mean" in one
        difference = f"{one['mean']:.3g} ± {one['standard_error']:.2g}" if known else ""
        lines.append([one["statement"], one["source"], difference, one["verdict"]])
    return _table(lines)


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["mean"] is None:
        return "not measured"
    spread = figure["deviation"]
    digits = 2 if abs(figure["mean"]) >= 10 else 3
    text = f"{figure['mean']:.{digits}f}"
    return text if spread is None else f"{text} ± {spread:.{digits}f}"


def _table(lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(lines[0])
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])
