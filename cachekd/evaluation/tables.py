"""The report of an evaluation as tables of text, and as Markdown.

In: the report of `cachekd.evaluation.run`. Out: a table with a row for each metric and a column for
each model, mean and deviation in a cell; one of ExAccErr with what it is made of; and the reasons
of what was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cachekd.report.curves import Table
from cachekd.report.text import counted

GAP = "not measured"
SIDES = ("student", "teacher")
"""Whose contexts ExAccErr is measured in."""

# Title and decimals of each metric, in the order of the table.
_METRICS: dict[str, tuple[str, int]] = {
    "rouge_l": ("ROUGE-L", 2),
    **{f"distinct_{n}": (f"distinct-{n}, %", 2) for n in (1, 2, 3, 4)},
    "seq_rep_4": ("seq-rep-4, %", 2),
    "response_tokens": ("response tokens", 1),
    "length_ratio": ("length over reference's", 3),
    "ended": ("ended by themselves, %", 1),
    "empty_responses": ("empty responses", 1),
    "loss": ("loss, mean over examples, nats", 4),
    "loss_token_mean": ("loss, mean over tokens, nats", 4),
    "forward_kl": ("forward KL to the teacher, nats", 4),
    "reverse_kl": ("reverse KL to the teacher, nats", 4),
    "tvd": ("TVD to the teacher", 4),
    "cache_forward_kl": ("forward KL to the cache, nats", 4),
    "cache_loss_token_mean": ("loss on the cache, mean over tokens, nats", 4),
    "cache_tail_mass": ("mass outside the cache's heads", 4),
    "label_accuracy": ("label accuracy, %", 2),
    "label_mass": ("mass of the label words", 4),
    "ece": ("ECE, over the label words", 4),
    "ece_raw": ("ECE, raw probability", 4),
}
_EXACCERR = "exaccerr_"
# What a part of a metric counts.
_COUNTED = {
    ("rouge_l", "unseen"): "examples whose references have no word of a-z or 0-9, and count 0 in "
    "the mean ROUGE-L",
    ("cache_forward_kl", "cut"): "documents of the cache cut to the model's context",
    ("cache_forward_kl", "left_out"): "documents of the cache without a row that counts",
}


def main_table(report: Mapping[str, Any]) -> Table:
    """Metrics by model: mean and sample standard deviation over seeds."""
    models = report["models"]
    rows = [
        (_title(name), *(_cell(model["metrics"].get(name), _decimals(name)) for model in models))
        for name in metric_names(report)
    ]
    runs = len(report["settings"]["seeds"])
    drawn = "greedy" if report["settings"]["greedy"] else counted(runs, "seed")
    return Table(
        title=f"{counted(report['data']['examples'], 'example')}, {drawn}",
        header=("", *(model["name"] for model in models)),
        rows=tuple(rows),
    )


def exposure_table(report: Mapping[str, Any]) -> Table | None:
    """ExAccErr with R, E and the alive shares, means over seeds; None where it is not there."""
    rows = [
        (f"{model['name']} at {name.removeprefix(_EXACCERR)}", *_exposed(model["metrics"][name]))
        for model in report["models"]
        for name in model["metrics"]
        if name.startswith(_EXACCERR)
    ]
    if not rows:
        return None
    return Table(
        title="ExAccErr = (R - E) / E by length",
        header=("", "ExAccErr, %", "R, nats", "E, nats", "alive: model", "alive: teacher"),
        rows=tuple(rows),
    )


def metric_names(report: Mapping[str, Any]) -> list[str]:
    """Names of the metrics that any model has, in the order of the table."""
    found = {name for model in report["models"] for name in model["metrics"]}
    exposed = {name for name in found if name.startswith(_EXACCERR)}
    known = [name for name in _METRICS if name in found]
    return known + sorted(exposed, key=lambda name: int(name.removeprefix(_EXACCERR)))


def gaps(report: Mapping[str, Any]) -> list[str]:
    """Why some cells are empty: a sentence for each model that failed, and metric and reason."""
    found: dict[str, list[str]] = {}
    for name in metric_names(report):
        for model in report["models"]:
            figure = model["metrics"].get(name)
            if figure is not None and figure["why"] not in (None, model["failed"]):
                said = f"{_title(name)}: {GAP}: {figure['why']}"
                found.setdefault(said, []).append(model["name"])
    failed = [
        f"{model['name']}: failed, and what is missing is {GAP}: {model['failed']}"
        for model in report["models"]
        if model["failed"] is not None
    ]
    return failed + [f"{', '.join(names)}: {said}" for said, names in found.items()]


def counts(report: Mapping[str, Any]) -> list[str]:
    """What was cut or left out, a sentence each; nothing where all is whole."""
    settings = report["settings"]
    side = "beginning" if settings["truncation_side"] == "left" else "end"
    cut = {
        "prompts_cut": f"prompts that lost their {side}, at {settings['max_prompt_length']} tokens",
        "responses_cut": f"references cut to {settings['max_new_tokens']} tokens for the loss",
    }
    found: dict[str, list[str]] = {}
    for model in report["models"]:
        amounts = {what: model[key] for key, what in cut.items()} | _in_parts(model)
        for what, amount in amounts.items():
            if amount:
                found.setdefault(f"{what}: {amount:,}", []).append(model["name"])
    said = [f"rows left out: {why}: {n:,}" for why, n in report["data"]["skipped"].items()]
    return said + [f"{', '.join(names)}: {what}" for what, names in found.items()]


def _in_parts(model: Mapping[str, Any]) -> dict[str, int]:
    """What the parts of figures count, alike for every seed, by its sentence."""
    found = {}
    for (metric, part), what in _COUNTED.items():
        figure = model["metrics"].get(metric)
        amounts = figure["parts"].get(part) if figure is not None else None
        found[what] = amounts[0] if amounts else 0
    return found


def notes(report: Mapping[str, Any]) -> list[str]:
    """All that is to be said beside the tables, a sentence each."""
    return [*report["notes"], *gaps(report), *counts(report)]


def markdown(report: Mapping[str, Any]) -> str:
    """The tables as Markdown, with what was cut, left out or not measured below them."""
    tables = [main_table(report), exposure_table(report)]
    parts = [_markdown(table) for table in tables if table is not None]
    said = "".join(f"- {_escaped(note)}\n" for note in notes(report))
    return "\n".join([*parts, *filter(None, [said])])


def _markdown(table: Table) -> str:
    rule = [":--", *["--:"] * (len(table.header) - 1)]
    lines = [table.header, rule, *table.rows]
    body = "".join(f"| {' | '.join(map(_escaped, line))} |\n" for line in lines)
    return f"**{_escaped(table.title)}**\n\n{body}"


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _title(name: str) -> str:
    if name.startswith(_EXACCERR):
        return f"ExAccErr at {name.removeprefix(_EXACCERR)} tokens, %"
    return _METRICS[name][0]


def _decimals(name: str) -> int:
    return 1 if name.startswith(_EXACCERR) else _METRICS[name][1]


def _cell(figure: Mapping[str, Any] | None, decimals: int) -> str:
    if figure is None or figure["mean"] is None:
        return "—"
    text = f"{figure['mean']:.{decimals}f}"
    deviation = figure["deviation"]
    return text if deviation is None else f"{text} ± {deviation:.{decimals}f}"


def _exposed(figure: Mapping[str, Any]) -> Sequence[str]:
    """Cells of one length."""
    parts = figure["parts"]
    if not parts:
        return ["—"] * 5
    cells = [_cell(figure, 1)]
    for name, decimals in (("student", 3), ("teacher", 3)):
        cells.append(_mean(parts[name], decimals))
    return [*cells, *(f"{100 * _average(parts[f'alive_{side}']):.1f} %" for side in SIDES)]


def _mean(values: Sequence[float | None], decimals: int) -> str:
    known = [value for value in values if value is not None]
    return f"{_average(known):.{decimals}f}" if len(known) == len(values) else "—"


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)
