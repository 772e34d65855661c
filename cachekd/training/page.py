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

REPORT = "report.html"
_FIRST = ("loss", "kl", "ce", "tail_mass")
_LAST = ("learning_rate", "grad_norm")
_UNITS = {"loss": "nats a row", "kl": "nats a row", "ce": "nats a row", "tail_mass": "probability"}
_ABOUT_THE_RUN = frozenset(
    "step epoch runtime samples_per_second steps_per_second model_preparation_time "
    "jit_compilation_time num_input_tokens_seen total_flos train_loss train_runtime "
    "train_samples_per_second train_steps_per_second".split()
)
_CURVES = (("training", ""), ("held-out cache or text", "eval_"), ("held-out text", "eval_text_"))


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
            _pairs("Time and memory", "figure", _throughput(facts["throughput"])),
            *_rollouts(facts),
            _caches(facts),
            _pairs("Settings", "value", _settings(facts)),
        ],
        plots=[_plot(facts["history"], name) for name in figures_of(facts["history"])],
    )


def figures_of(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the figures that were logged, without ``eval_``: the loss and its parts first."""
    found = {_bare(name) for row in history for name in row} - _ABOUT_THE_RUN
    middle = sorted(found - {*_FIRST, *_LAST})
    return [name for name in (*_FIRST, *middle, *_LAST) if name in found]


def _bare(name: str) -> str:
    return name.removeprefix("eval_").removeprefix("text_")


def _plot(history: Sequence[Mapping[str, Any]], name: str) -> Plot:
    series: list[Series] = []
    for title, prefix in _CURVES:
        points: dict[float, float] = {}
        for row in history:
            if prefix + name in row:  # the best student, evaluated at the end, is no further point
                points.setdefault(row["step"], row[prefix + name])
        if points:
            series.append((title, list(points), list(points.values())))
    unit = _UNITS.get(name, "")
    return Plot(title=name.replace("_", " "), x_label="steps", y_label=unit, series=tuple(series))


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
    return notes


def _evaluation(facts: Mapping[str, Any]) -> list[Table]:
    """The last evaluation; nothing where there was none."""
    final = facts.get("final_eval") or {}
    figures = {
        name.replace("_", " "): f"{value:.4f}"
        for name, value in sorted(final.items())
        if name.startswith("eval_") and _bare(name) not in _ABOUT_THE_RUN
    }
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


def _throughput(used: Mapping[str, Any]) -> dict[str, str]:
    shown = {
        "seconds of training, without evaluations": f"{used['training_seconds']:,.1f}",
        "tokens a second": f"{used['tokens_per_second']:,.0f}",
        "steps a second": f"{used['steps_per_second']:,.3g}",
        "share of time waiting for data": f"{used['data_wait_share']:.1%}",
        "peak memory": f"{used['peak_memory_bytes'] / 1e6:,.0f} MB",
        "processes": f"{used['processes']}",
    }
    if used["peak_cuda_memory_bytes"] is not None:
        shown["peak CUDA memory"] = f"{used['peak_cuda_memory_bytes'] / 1e6:,.0f} MB"
    return shown


def _rollouts(facts: Mapping[str, Any]) -> list[Table]:
    """What the student wrote and what the teacher was asked; nothing for a run from caches."""
    found = facts["rollouts"]
    if found is None:
        return []
    groups = {"": found, "teacher: ": found["scores"], "seconds: ": found["seconds"]}
    shown = {
        f"{group}{name.replace('_', ' ')}": f"{value:,.4g}"
        if isinstance(value, float)
        else str(value)
        for group, values in groups.items()
        for name, value in values.items()
        if isinstance(value, int | float)
    }
    return [_pairs("Text of the student, and its teacher", "figure", shown)]


def _caches(facts: Mapping[str, Any]) -> Table:
    held = [("training", cache) for cache in facts["caches"]]
    if facts["eval_cache"] is not None:
        held.append(("evaluation", facts["eval_cache"]))
    rows = tuple(
        (cache["name"], use, f"{cache['samples']:,}", cache["source_id"][:12], cache["capture_id"])
        for use, cache in held
    )
    header = ("cache", "used for", "samples", "source", "capture id")
    return Table(title="Caches", header=header, rows=rows)


def _settings(facts: Mapping[str, Any]) -> dict[str, str]:
    config = {name: value for name, value in facts["config"].items() if name != "training"}
    options = facts["objective"]["options"]
    values = {**config, **options, **facts["training_arguments"], "loss_mask": facts["loss_mask"]}
    versions = {f"version of {name}": value for name, value in facts["versions"].items()}
    return {
        name: str(value)
        for name, value in (values | versions).items()
        if value not in (None, "", [], {})
    }


def _pairs(title: str, header: str, values: Mapping[str, str]) -> Table:
    return Table(title=title, header=("", header), rows=tuple(values.items()))
