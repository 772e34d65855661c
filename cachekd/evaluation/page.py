"""The report of an evaluation as one HTML page: tables, ROUGE-L, ExAccErr, reliability.

In: the report of `cachekd.evaluation.run`. Out: a self-contained page.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cachekd.evaluation.tables import SIDES, counts, exposure_table, gaps, main_table
from cachekd.report.bars import Bars
from cachekd.report.curves import Section, Table, write_page
from cachekd.report.figures import Figure
from cachekd.report.svg import Plot, Series

_NAN = float("nan")


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write the page.

    Raises:
        OSError: the file cannot be written.
    """
    tables = [main_table(report), exposure_table(report)]
    write_page(
        path,
        title="Evaluation of " + ", ".join(model["name"] for model in report["models"]),
        intro=_intro(report),
        tables=[table for table in tables if table is not None],
        plots=plots(report),
        sections=[*_missing(report), _how(report)],
    )


def plots(report: Mapping[str, Any]) -> list[Figure]:
    """The plots that this report has figures for."""
    found = [_rouge(report), _exposure(report), _alive(report), _reliability(report)]
    return [plot for plot in found if plot is not None]


def _intro(report: Mapping[str, Any]) -> list[str]:
    settings = report["settings"]
    drawn = (
        "the most probable tokens"
        if settings["greedy"]
        else f"draws at temperature {settings['temperature']:g}, top-p {settings['top_p']:g} and "
        f"top-k {settings['top_k']}, seeds {', '.join(map(str, settings['seeds']))}"
    )
    said = [
        f"Responses are {drawn}, of at most {settings['max_new_tokens']} tokens, with "
        f"no_repeat_ngram_size {settings['no_repeat_ngram_size']}; prompts are worded by the "
        f"template {settings['prompt_template']}."
    ]
    if not settings["greedy"] and len(settings["seeds"]) > 1:
        said.append("A cell is the mean over seeds ± their sample standard deviation.")
    if report["teacher"]:
        said.append(
            "KL and TVD are exact, over the whole vocabulary of the teacher "
            f"{report['teacher']['path']}."
        )
    if report["cache"]:
        said.append(_of_cache(report["cache"]))
    if gaps(report):
        said.append("A dash was not measured; the reasons stand below the figures.")
    return [" ".join(said), *report["notes"]]


def _of_cache(cache: Mapping[str, Any]) -> str:
    """What KL to a cache is, by what of each distribution the cache holds."""
    said = f"KL to the cache {cache['name']} is that of its own samples"
    if {"samples", "tau"} & set(cache["selection"]):
        return f"{said}, estimated from its draws: right in expectation, above or below at times."
    return f"{said}, its heads and one tail bucket: at most the KL of the whole distributions."


def _missing(report: Mapping[str, Any]) -> list[Section]:
    """Nothing where all is whole."""
    said = [*gaps(report), *counts(report)]
    heading = "What was cut, left out or not measured"
    return [Section(heading=heading, text=said)] if said else []


def _how(report: Mapping[str, Any]) -> Section:
    tables = [_models(report), _settings(report)]
    return Section(heading="Models, data and settings", tables=tables)


def _rouge(report: Mapping[str, Any]) -> Bars | None:
    """One bar alone would say no more than the table."""
    if len(report["models"]) < 2:
        return None
    figures = [model["metrics"]["rouge_l"] for model in report["models"]]
    means = [_NAN if one["mean"] is None else one["mean"] for one in figures]
    deviations = [_NAN if one["deviation"] is None else one["deviation"] for one in figures]
    return Bars(
        title="ROUGE-L, mean ± deviation over seeds",
        x_label="ROUGE-L",
        groups=tuple(model["name"] for model in report["models"]),
        series=(("ROUGE-L", means, deviations),),
    )


def _exposure(report: Mapping[str, Any]) -> Plot | None:
    series: list[Series] = []
    for model in _exposed(report):
        sums = [model["exaccerr"][side]["accumulated"] for side in SIDES]
        ratios = [
            100 * (r - e) / e if r is not None and e else _NAN
            for r, e in zip(*sums, strict=False)  # as far as both sides reach
        ]
        series.append((model["name"], range(1, len(ratios) + 1), ratios))
    if not series:
        return None
    return Plot(
        title="ExAccErr by response length, all seeds together",
        x_label="response tokens",
        y_label="ExAccErr, %",
        series=tuple(series),
    )


def _alive(report: Mapping[str, Any]) -> Plot | None:
    exposed = _exposed(report)
    if not exposed:
        return None
    own, forced = (
        [(model["name"], model["exaccerr"][side]["alive"]) for model in exposed] for side in SIDES
    )
    # What the teacher wrote differs where models have other prompts or end tokens.
    alike = all(curve == forced[0][1] for _, curve in forced)
    named = [("the teacher", forced[0][1])]
    if not alike:
        named = [(f"the teacher beside {name}", curve) for name, curve in forced]
    curves = [*own, *((_apart(name, report), curve) for name, curve in named)]
    return Plot(
        title="Responses that are not over",
        x_label="response tokens",
        y_label="share alive",
        series=tuple((name, range(1, len(ys) + 1), ys) for name, ys in curves),
    )


def _apart(name: str, report: Mapping[str, Any]) -> str:
    """A name for a series that is of no model, unlike those of the models."""
    while name in {model["name"] for model in report["models"]}:
        name = f"({name})"
    return name


def _exposed(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [model for model in report["models"] if "exaccerr" in model]


def _reliability(report: Mapping[str, Any]) -> Plot | None:
    series: list[Series] = []
    names: dict[str, list[str]] = {}
    for model in report["models"]:
        bins = [one for one in model.get("reliability", []) if one["count"]]
        if bins:
            xs, ys = [one["confidence"] for one in bins], [one["accuracy"] for one in bins]
            series.append((model["name"], xs, ys))
            names[model["name"]] = [f"{one['count']} examples" for one in bins]
    if not series:
        return None
    return Plot(
        title="Reliability: accuracy against confidence, ten bins",
        x_label="confidence",
        y_label="accuracy",
        series=(*series, (_apart("calibrated", report), [0.0, 1.0], [0.0, 1.0])),
        marks=dict.fromkeys(names, "line"),
        names=names,
    )


def _models(report: Mapping[str, Any]) -> Table:
    others = []
    if report["teacher"]:
        others.append({**report["teacher"], "name": _apart(report["teacher"]["name"], report)})
    rows = [
        (
            one["name"],
            one["path"],
            f"{one['parameters']:,}" if "parameters" in one else "",
            one["dtype"],
            one["source_id"][:12],
            f"{one['seconds']:,.1f}" if "seconds" in one else "",
        )
        for one in (*report["models"], *others)
    ]
    header = ("", "path", "parameters", "dtype", "source id", "seconds")
    return Table(title="Models", header=header, rows=tuple(rows))


def _settings(report: Mapping[str, Any]) -> Table:
    versions = {f"version of {name}": value for name, value in report["versions"].items()}
    values = {**report["data"], **report["settings"], **versions}
    rows = [
        (name.replace("_", " "), _text(value))
        for name, value in values.items()
        if value not in (None, "", [], {})
    ]
    return Table(title="Data and settings", header=("", "value"), rows=tuple(rows))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return str(value)
