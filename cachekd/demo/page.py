"""What the demo shows at its end: a small table and a page with curves.

In: the result of `cachekd.demo.run.run_demo`. Out: rows for a terminal table, or an HTML file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cachekd.report.curves import Table, write_page
from cachekd.report.svg import Plot

TITLE = "What distillation bought"
HEADER = ("model", "KL to the teacher", "loss", "perplexity")


def summary_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Held-out figures as text: a header row, then the teacher and each student.

    KL and loss are in nats per token; smaller is better in every column.
    """
    rows = [HEADER, _row("teacher", 0.0, result["teacher"]["ce"])]
    rows += [
        _row(f"student, {name}", run["final"]["eval_kl"], run["final"]["eval_ce"])
        for name, run in result["runs"].items()
    ]
    return rows


def write_report(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page of a demo: what was done, the table, and curves over the steps."""
    header, *rows = summary_rows(result)
    write_page(
        path,
        title=TITLE,
        intro=_intro(result),
        tables=[
            Table(title="On topics that no model was trained on", header=header, rows=tuple(rows))
        ],
        plots=[
            _plot(result, "Distance to the teacher, held-out topics", key="eval_kl"),
            _plot(result, "Loss on the text, held-out topics", key="eval_ce"),
            _plot(result, "Loss on the text, while training", key="ce"),
        ],
    )


def _row(name: str, kl: float, loss: float) -> tuple[str, ...]:
    return name, f"{kl:.3f}", f"{loss:.3f}", f"{math.exp(loss):.1f}"


def _intro(result: Mapping[str, Any]) -> list[str]:
    runs = result["runs"]
    plain, distilled = runs["text only"]["final"], runs["distilled"]["final"]
    change = distilled["eval_kl"] / plain["eval_kl"] - 1
    return [
        "Two students began with the same weights and saw the same text in the same order for "
        f"{result['steps']} steps. One learned from the text alone. The other learned mostly from "
        "the teacher's predictions, which had been computed once and were read from a cache: no "
        "teacher was loaded while it trained.",
        f"On {result['teacher']['rows']} tokens of topics that neither the teacher nor the "
        f"students were trained on, the KL to the teacher is {distilled['eval_kl']:.3f} nats per "
        f"token for the distilled student against {plain['eval_kl']:.3f} ({change:+.0%}), and the "
        f"loss on the text {distilled['eval_ce']:.3f} against {plain['eval_ce']:.3f}.",
        f"The whole demo took {result['seconds']:.0f} seconds on this machine. It is one run with "
        f"seed {result['seed']}; the KL counts what the cache does not keep of a distribution as "
        "one entry.",
    ]


def _plot(result: Mapping[str, Any], title: str, *, key: str) -> Plot:
    series = []
    for name, run in result["runs"].items():
        points = [(row["step"], row[key]) for row in run["history"] if key in row]
        series.append((name, [x for x, _ in points], [y for _, y in points]))
    return Plot(title=title, x_label="steps", y_label="nats per token", series=tuple(series))
