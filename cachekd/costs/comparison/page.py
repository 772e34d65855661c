"""A comparison in words, tables and figures: for a terminal, and as one HTML page with PNGs.

In: the report of a comparison. Out: sentences and `Table`s; files. Every value says whether it was
measured; one that was extrapolated (*) has its formula in the last table, a gap says why it is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cachekd.config import BenchmarkConfig
from cachekd.costs.comparison.jobs import SIDES
from cachekd.costs.comparison.plots import plots_of
from cachekd.costs.comparison.verdict import CACHE, DO_NOT, EITHER
from cachekd.costs.page import hours
from cachekd.errors import StoreError
from cachekd.report.curves import Section, Table, write_page
from cachekd.report.png import write_pngs
from cachekd.report.text import amount

Report = Mapping[str, Any]
Show = Callable[[float], str]
_TITLES = {CACHE: "Cache.", DO_NOT: "Do not cache.", EITHER: "Either way: they cost the same."}


def write_outputs(config: BenchmarkConfig, report: Report) -> None:
    """Write the page and the pictures that are asked for, each whole or not at all.

    Raises:
        StoreError: a file cannot be written.
    """
    try:
        if config.plots_dir is not None:
            write_pngs(plots_of(report), Path(config.plots_dir))
        if config.out is not None:
            _write(Path(config.out), report)
    except OSError as error:
        raise StoreError(f"the report cannot be written: {error}") from error


def _write(path: Path, report: Report) -> None:
    write_page(
        path,
        title="Cached or live: what distillation costs here",
        intro=[headline(report), *reasons(report), *explain(report)],
        tables=[step_table(report), capture_table(report), *account_tables(report)],
        plots=plots_of(report),
        sections=[
            Section(
                heading="How each value came about",
                text=[
                    "Measured values are of this run and this machine. The others follow from "
                    "them by the formulas below, or are gaps for the reason that is given."
                ],
                tables=[origin_table(report)],
            )
        ],
    )


def headline(report: Report) -> str:
    """The verdict in a few words."""
    return _TITLES.get(report["verdict"]["advice"], "It cannot be told.")


def reasons(report: Report) -> list[str]:
    """The reasons of the verdict, as sentences."""
    return [f"{why[:1].upper()}{why[1:]}." for why in report["verdict"]["reasons"]]


def explain(report: Report) -> list[str]:
    """What was compared, in sentences."""
    data, plan, models = report["data"], report["plan"], report["models"]
    ratio = models["active_ratio"]
    size = ratio["how"] if ratio["value"] is None else f"{ratio['value']:.3g}"
    turns = "in turn" if report["alternated"] else "one side after another, for lack of memory"
    planned = f"{plan['epochs']:g} epochs x {plan['students']} students"
    moving = plan["teacher_changes"]
    moves = f", with a teacher that changes every {moving:g} epochs" if moving else ""
    return [
        f"Planned: {planned}{moves}, objective {report['objective']}, on {data['samples']:,} "
        f"samples ({data['sample_tokens']:,} tokens; {data['tokens']:,} in {data['documents']:,} "
        f"distinct documents, which are captured). Measured on {data['drawn']:,} random documents "
        f"({data['drawn_tokens']:,} tokens); the sides took their steps {turns}.",
        f"Active parameters, teacher / student: {size}.",
        "The live step minimises forward KL over the whole vocabulary, whatever the objective of "
        "the cached one: the teacher's body runs once a batch, its head beside the student's on "
        "a few hundred rows at a time, and no logits of a whole batch exist. sft is a step on the "
        "text alone: the floor of both.",
        "Workers that load data, where --dataloader-num-workers asks for them, go on while other "
        "sides take their turns: what a side waits for data then looks smaller than it is.",
        "A live run reads and tokenises the data, as the capture does; one from the cache does "
        "not. Energy is that of GPUs: of the capture with its loading, of runs that of their "
        "steps. What a capture sets up and learns before it goes on is told from what each token "
        "takes by the median of its batches, four at least; bytes are not told apart so: a small "
        "sample overestimates them by the cache's own files, and more --samples come nearer.",
    ]


def step_table(report: Report) -> Table:
    """A step of each side."""
    lines: list[tuple[str, str, Show]] = [
        ("step", "step_seconds", _milliseconds),
        ("first quartile", "step_seconds_low", _milliseconds),
        ("third quartile", "step_seconds_high", _milliseconds),
        ("tokens/s", "tokens_per_second", lambda v: f"{v:,.0f}"),
        ("waits for data", "data_wait_share", lambda v: f"{v:.1%}"),
        ("peak memory", "peak_memory_bytes", amount),
        ("energy", "joules_per_step", lambda v: f"{v:.3g} J"),
        ("load", "load_seconds", _seconds),
        ("epoch", "epoch_seconds", _seconds),
    ]
    steps = report["steps"]
    return Table(
        title="A training step (*: extrapolated)",
        header=("", *SIDES),
        rows=tuple(
            (title, *(shown(steps[name][key], show) for name in SIDES))
            for title, key, show in lines
        ),
    )


def capture_table(report: Report) -> Table:
    """The capture."""
    lines: list[tuple[str, str, Show]] = [
        ("tokens/s", "tokens_per_second", lambda v: f"{v:,.0f}"),
        ("load", "load_seconds", _seconds),
        ("bytes per token", "bytes_per_token", lambda v: f"{v:.1f}"),
        ("peak memory", "peak_memory_bytes", amount),
        ("J/token", "joules_per_token", lambda v: f"{v:.3g}"),
        ("whole data: time", "seconds", _seconds),
        ("whole data: cache", "bytes", amount),
    ]
    return Table(
        title="The capture (*: extrapolated)",
        header=("", ""),
        rows=tuple((title, shown(report["capture"][key], show)) for title, key, show in lines),
    )


def account_tables(report: Report) -> list[Table]:
    """Totals and break-even in time, money and energy, one table."""
    shows: dict[str, Show] = {
        "time": _seconds,
        "money": lambda v: f"{v:,.4g}",
        "energy": lambda v: f"{v:,.4g} J",
    }
    stays = ", of a teacher that stays" if report["plan"]["teacher_changes"] else ""
    lines = (
        ("cached, planned", "cached_total", None),
        ("live, planned", "live_total", None),
        (f"break-even, epochs x students{stays}", "break_even", _count),
        ("break-even, students of the planned epochs", "break_even_students", _count),
    )
    rows = tuple(
        (title, *(_sided(report[what], key, own or show) for what, show in shows.items()))
        for title, key, own in lines
    )
    return [
        Table(
            title="What is planned, and where both ways meet (*: extrapolated)",
            header=("", *shows),
            rows=rows,
        )
    ]


def _sided(account: Mapping[str, Any], key: str, show: Show) -> str:
    """A value of an account; of a break-even that a cache is cheaper up to, that."""
    before = key == "break_even" and account.get("pays") == "up to"
    return ("up to " if before else "") + shown(account[key], show)


def origin_table(report: Report) -> Table:
    """Where each quantity is from: a line for each that is not simply measured."""
    rows = [(name, one["kind"], one["how"]) for name, one in quantities(report) if one.get("how")]
    if "how" in report["sensitivity"]:
        rows.append(("sensitivity", "extrapolated", report["sensitivity"]["how"]))
    else:
        rows.append(("sensitivity", "gap", report["sensitivity"]["gap"]))
    return Table(title="Origins", header=("quantity", "kind", "how"), rows=tuple(rows))


def quantities(value: Any, name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All quantities of a report, by their path."""
    if not isinstance(value, Mapping):
        return
    if "kind" in value and "value" in value:
        yield name, value
        return
    for key, inner in value.items():
        yield from quantities(inner, f"{name}.{key}" if name else key)


def shown(quantity: Mapping[str, Any], show: Show) -> str:
    """A value, marked if it is extrapolated; of what has none, that."""
    if quantity["kind"] == "gap":
        return "not measured"
    if quantity["value"] is None:
        return "never"
    return show(quantity["value"]) + ("*" if quantity["kind"] == "extrapolated" else "")


def gaps(report: Report) -> list[str]:
    """Reasons of all gaps, each once."""
    found = [one["how"] for _, one in quantities(report) if one["kind"] == "gap"]
    found += [report["sensitivity"][key] for key in ("gap",) if key in report["sensitivity"]]
    return list(dict.fromkeys(found))


def _milliseconds(value: float) -> str:
    return f"{1e3 * value:,.4g} ms"


def _seconds(value: float) -> str:
    return hours(value / 3600)


def _count(value: float) -> str:
    return f"{value:.3g}"
