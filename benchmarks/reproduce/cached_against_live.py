"""The same student from a cache and from the live teacher, and what smaller caches cost it.

Forward KL alone, on the data's own text. The live teacher runs in every step and gives whole
distributions; the caches keep heads by number and by mass, levels, and unbiased draws. Student and
teacher are then compared over the whole vocabulary, so that what a cache left out is seen. The
fidelity curve is the student's held-out KL over bytes per target; a page and a picture of it are
written beside the result.

    python benchmarks/reproduce/cached_against_live.py --teacher T --student S \
        --data TRAIN.jsonl --dev-data DEV.jsonl --test-data TEST.jsonl --work WORK

Where a GPU is: --config benchmarks/reproduce/cached_against_live.yaml --work WORK.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from carry_out import Reproduction, carry_out, journal_of
from measure import dev_of, test_of
from orderings import Ordering
from settings import Settings, run_command
from ways import Way, capture

from cachekd import open_cache
from cachekd.report.curves import Table, write_page
from cachekd.report.png import write_png
from cachekd.report.svg import Plot

LIVE = "live teacher"
SELECTIONS: dict[str, dict[str, Any]] = {
    "top 64, p .99": {},
    "top 256": {"logits_selection": "top_k", "logits_top_k": 256},
    "top 16": {"logits_selection": "top_k", "logits_top_k": 16},
    "top 4": {"logits_selection": "top_k", "logits_top_k": 4},
    "sqrt 1/24": {"logits_selection": "top_k", "logits_top_k": 256, "logits_values": "sqrt"},
    "50 draws": {"logits_selection": "sampled", "logits_samples": 50},
    "sampled below .02": {"logits_selection": "top_k+sampled", "logits_top_k": 128},
}
"""Captures by name: settings of precompute beside its defaults; the first is the default."""
UNBIASED = ("50 draws", "sampled below .02")


def captures(settings: Settings) -> tuple[dict[str, str], dict[str, float]]:
    """Of each selection the cache, and its bytes per target (shards over captured rows)."""
    places, sizes = {}, {}
    for number, (name, changes) in enumerate(SELECTIONS.items()):
        places[name], report = capture(settings, f"s{number}", rows="response", **changes)
        rows = sum(int((np.diff(r.logits.offsets) > 0).sum()) for r in open_cache(places[name]))
        sizes[name] = round(report["bytes"] / rows, 1)
    return places, sizes


def ways_of(caches: Mapping[str, str]) -> tuple[Way, ...]:
    """The student as it is, from each cache, and from the live teacher; one learning rate."""
    loss = {"loss": {"kd": 1.0}}
    cached = [
        Way(name=name, family="KD", objective="kd", options=loss, caches={"train": place})
        for name, place in caches.items()
    ]
    live = Way(name=LIVE, family="KD", objective="kd", options=loss, train={"logits_top_k": 0})
    return (Way(name="start", family="start", objective=None), *cached, live)


def orderings() -> tuple[Ordering, ...]:
    """Every cache within seed noise of the live teacher, in both figures."""
    return tuple(
        Ordering(better=name, worse=LIVE, metric=metric, source="cached = live", rule="same")
        for metric in ("kl", "rouge_l")
        for name in SELECTIONS
    )


def curve(rows: Sequence[Mapping[str, Any]], sizes: Mapping[str, float]) -> list[dict[str, Any]]:
    """The fidelity curve: of each cache bytes per target, and the student's held-out figures."""
    means = {row["way"]: row["figures"] for row in rows}
    return [
        {
            "selection": name,
            "bytes_per_target": size,
            "kl": means[name]["kl"]["mean"],
            "rouge_l": means[name]["rouge_l"]["mean"],
        }
        for name, size in sorted(sizes.items(), key=lambda item: item[1])
        if name in means
    ]


def plot(points: Sequence[Mapping[str, Any]], live: float | None) -> Plot:
    """Held-out KL over bytes per target; the live teacher is a line."""
    series, names = [], {}
    for kind, own in (("heads", False), ("unbiased", True)):
        chosen = [p for p in points if (p["selection"] in UNBIASED) is own]
        series.append(
            (kind, [p["bytes_per_target"] for p in chosen], [_number(p["kl"]) for p in chosen])
        )
        names[kind] = [p["selection"] for p in chosen]
    ends = [min(p["bytes_per_target"] for p in points), max(p["bytes_per_target"] for p in points)]
    series.append((LIVE, ends, [_number(live)] * 2))
    return Plot(
        title="Held-out KL to the teacher, of students from caches of each size",
        x_label="bytes per target",
        y_label="KL (nats)",
        series=tuple(series),
        log_x=True,
        marks={"heads": "line", "unbiased": "line"},
        names=names,
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def reproduce(settings: Settings) -> Mapping[str, Any]:
    """Capture, train, look, judge, draw."""
    journal = journal_of(settings)
    places, sizes = captures(settings)
    what = Reproduction(
        name="cached_against_live",
        title="Cached against live",
        settings=settings,
        ways=ways_of(places),
        dev=dev_of(settings),
        looks=(test_of(settings),),
        orderings=orderings(),
        columns={"kl": "KL", "rouge_l": "ROUGE-L", "loss": "loss", "length": "length"},
        facts=lambda rows: {"curve": curve(rows, sizes)},
    )
    result = carry_out(what, journal)
    live = next(row for row in result["table"] if row["way"] == LIVE)
    page(Path(settings.results), result, live["figures"]["kl"]["mean"])
    return result


def page(folder: Path, result: Mapping[str, Any], live: float | None) -> None:
    """The curve as a page of its own, and as a picture."""
    figure = plot(result["curve"], live)
    write_png(figure, folder / "reproduce_cached_against_live.png")
    rows = tuple(
        (
            point["selection"],
            f"{point['bytes_per_target']:g}",
            f"{_number(point['kl']):.4f}",
            f"{_number(point['rouge_l']):.2f}",
        )
        for point in result["curve"]
    )
    write_page(
        folder / "reproduce_cached_against_live.html",
        title="Cached against live",
        intro=[f"Mean over seeds; the student from the live teacher has KL {_number(live):.4f}."],
        tables=[
            Table(
                title="Students from caches",
                header=("selection", "bytes per target", "KL", "ROUGE-L"),
                rows=rows,
            )
        ],
        plots=[figure],
    )


if __name__ == "__main__":
    run_command(Settings, reproduce, __doc__)
