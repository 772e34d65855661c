"""The report of a run: ``report.html`` beside the student.

In: the record of a run, as in ``run.json``. Out: one self-contained page with its figures, caches,
counts and settings, and a curve for every figure that was logged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cachekd.report.curves import Table, write_page
from cachekd.report.svg import Plot, Series
from cachekd.training.figures import (
    CURVES,
    curve,
    figures_of,
    held_out,
    plot_of,
    rollouts_of,
    settings_of,
    throughput_of,
)

REPORT = "report.html"


def write_report(path: Path, facts: Mapping[str, Any]) -> None:
    """Write the page.

    Args:
        path: file to write.
        facts: the record of a run, with its ``history``.
    """
    write_page(
        path,
        title=f"Training of {Path(facts['output_dir']).name}",
        intro=_intro(facts),
        tables=[
            *_evaluation(facts),
            _pairs("Samples", "count", _counts(facts)),
            _pairs("Time and memory", "figure", throughput_of(facts["throughput"])),
            *_rollouts(facts),
            _caches(facts),
            _pairs("Settings", "value", settings_of(facts)),
        ],
        plots=[_plot(facts["history"], name) for name in figures_of(facts["history"])],
    )


def _plot(history: Sequence[Mapping[str, Any]], name: str) -> Plot:
    series: list[Series] = []
    for title, prefix in CURVES:
        steps, values = curve(history, prefix + name)
        if steps:
            series.append((title, steps, values))
    return plot_of(name, series)


def _intro(facts: Mapping[str, Any]) -> list[str]:
    config, sources = facts["config"], [cache["name"] for cache in facts["caches"]]
    if facts["rollouts"] is not None:
        sources.append("text that it wrote itself, scored by a live teacher")
    text = (
        f"The student {Path(facts['student']).name} was trained with the objective "
        f"{config['objective']} from {', '.join(sources)}: {facts['steps']:,} steps, "
        f"{facts['trained_parameters']:,} of {facts['parameters']:,} parameters. Status: "
        f"{facts['status']}."
    )
    notes = [text]
    if facts["best_step"] is not None:
        notes.append(f"The best evaluation was at step {facts['best_step']:,}.")
    if facts["empty_batches"]:
        notes.append(
            f"{facts['empty_batches']:,} batches had no trained row; they counted nothing."
        )
    if facts["skipped_steps"]:
        notes.append(
            f"{facts['skipped_steps']:,} steps had no finite gradient in fp16, and were left out."
        )
    return notes


def _evaluation(facts: Mapping[str, Any]) -> list[Table]:
    """The last evaluation; nothing where there was none."""
    final = held_out(facts.get("final_eval"))
    figures = {name.replace("_", " "): f"{value:.4f}" for name, value in final.items()}
    return [_pairs("Evaluation of the saved student", "figure", figures)] if figures else []


def _counts(facts: Mapping[str, Any]) -> dict[str, str]:
    counts = facts["counts"]
    shown = {
        name.replace("_", " "): f"{counts[name]:,}"
        for name in ("samples", "prompts", "tokens", "prompt_tokens", "trained_rows", "truncated")
        if name in counts
    }
    shown |= {f"left out: {why}": f"{count:,}" for why, count in sorted(counts["dropped"].items())}
    shown["batches without a trained row"] = f"{facts['empty_batches']:,}"
    text = facts["eval_data"]
    if text is not None:
        shown |= {
            "held-out text: samples": f"{text['samples']:,}",
            "held-out text: trained rows": f"{text['trained_rows']:,}",
        }
        for group in ("dropped", "changed"):
            shown |= {f"held-out text: {why}": f"{n:,}" for why, n in sorted(text[group].items())}
    return shown


def _rollouts(facts: Mapping[str, Any]) -> list[Table]:
    shown = rollouts_of(facts["rollouts"])
    return [_pairs("Text of the student, and its teacher", "figure", shown)] if shown else []


def _caches(facts: Mapping[str, Any]) -> Table:
    held = [("training", cache) for cache in facts["caches"]]
    if facts["eval_cache"] is not None:
        held.append(("evaluation", facts["eval_cache"]))
    rows = tuple(
        (cache["name"], use, f"{cache['samples']:,}", _source(cache), cache["capture_id"])
        for use, cache in held
    )
    header = ("cache", "used for", "samples", "source", "capture id")
    return Table(title="Caches", header=header, rows=rows)


def _source(cache: Mapping[str, Any]) -> str:
    """Whose targets a cache holds; of an import nothing proves it."""
    return f"{cache['source_id'][:12]}{' (asserted)' if cache.get('asserted') else ''}"


def _pairs(title: str, header: str, values: Mapping[str, str]) -> Table:
    return Table(title=title, header=("", header), rows=tuple(values.items()))
