"""A comparison in words, tables and figures: for a terminal, and as one HTML page with PNGs.

In: the report of a comparison. Out: sentences and `Table`s; files. Every value says whether it was
measured; one that was extrapolated (*) has its formula in the last table, a gap says why it is one,
a noisy one is marked (†).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cachekd.config import BenchmarkConfig
from cachekd.costs.comparison.jobs import SIDES
from cachekd.costs.comparison.plots import NOISY, mark, plots_of
from cachekd.costs.comparison.spread import NOISY_MEMORY, NOISY_TIME
from cachekd.costs.comparison.verdict import CACHE, DO_NOT, EITHER, every_epochs, plan_of
from cachekd.costs.page import hours
from cachekd.errors import StoreError
from cachekd.report.curves import Section, Table, write_page
from cachekd.report.png import write_pngs
from cachekd.report.text import amount, counted

Report = Mapping[str, Any]
Show = Callable[[float], str]
_TITLES = {CACHE: "Cache.", DO_NOT: "Do not cache.", EITHER: "Either way: they cost the same."}
_NO_VERDICT = "No verdict: what it needs was not measured."


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
        title=headline(report),
        intro=[*reasons(report), planned(report)],
        tables=[account_table(report)],
        plots=plots_of(report),
        sections=[
            Section(
                heading="What was measured",
                text=[*noise(report), *explain(report)],
                tables=[
                    step_table(report),
                    run_table(report),
                    capture_table(report),
                    *sensitivity_tables(report),
                ],
            ),
            Section(
                heading="How each value came about",
                text=[
                    "Measured values are of this run and this machine. The others follow from "
                    "them by the formulas below, or are gaps for the reason that is given."
                ],
                tables=[origin_table(report)],
            ),
        ],
    )


def headline(report: Report) -> str:
    """The verdict in a few words."""
    return _TITLES.get(report["verdict"]["advice"], _NO_VERDICT)


def reasons(report: Report) -> list[str]:
    """The reasons of the verdict, as sentences."""
    return [f"{why[:1].upper()}{why[1:]}." for why in report["verdict"]["reasons"]]


def noise(report: Report) -> list[str]:
    """What the mark of noisy values means, where there are any."""
    if not any(one.get("noisy") for _, one in quantities(report)):
        return []
    return [
        f"{NOISY} marks what is noisy. Of times: two standard errors of the mean time a token are "
        f"over {2 * NOISY_TIME:.0%} of it, or there were too few steps or batches to tell, or "
        f"processes that import the same took times that differ by over {4 * NOISY_TIME:.0%}. Of "
        f"memory: processes that had only imported their libraries differ by over "
        f"{NOISY_MEMORY:.0%} of what this one took after that. More --steps and --samples, and a "
        "machine with less else to do, make them steadier."
    ]


def planned(report: Report) -> str:
    """What is planned, in a sentence."""
    data, plan = report["data"], report["plan"]
    every = plan["teacher_changes"]
    moves = f", with a teacher that changes every {every_epochs(every)}" if every else ""
    return (
        f"Planned: {plan_of(plan['epochs'], plan['students'])}{moves}, objective "
        f"{report['objective']}, on {counted(data['samples'], 'sample')} "
        f"({counted(data['sample_tokens'], 'token')}; {data['tokens']:,} in "
        f"{counted(data['documents'], 'distinct document')}, which a capture scores)."
    )


def explain(report: Report) -> list[str]:
    """What was compared, in sentences."""
    data, ratio = report["data"], report["models"]["active_ratio"]
    size = ratio["how"] if ratio["value"] is None else f"{ratio['value']:.3g}"
    turns = "in turn" if report["alternated"] else "one side after another, for lack of memory"
    return [
        f"Measured on {counted(data['drawn'], 'random document')} "
        f"({counted(data['drawn_tokens'], 'token')}); the sides took their steps {turns}. Active "
        f"parameters, teacher / student: {size}.",
        "The live step minimises forward KL over the whole vocabulary, whatever the objective of "
        "the cached one: the teacher's body runs once a batch, its head beside the student's on "
        "a few hundred rows at a time, and no logits of a whole batch exist. sft is a step on the "
        "text alone: the floor of both.",
        "Workers that load data, where --dataloader-num-workers asks for them, go on while other "
        "sides take their turns: what a side waits for data then looks smaller than it is.",
        "A live run reads and tokenises the data, as the capture does; one from the cache does "
        "not. Saving the student at the end of a run counts; evaluations and checkpoints before "
        "that take as long either way and are left out. Energy is that of GPUs: of the capture "
        "with its loading, of runs that of their steps. What a capture sets up and learns before "
        "it goes on is told from what each token takes by the median of its batches, four at "
        "least; bytes are not told apart so: a small sample overestimates them by the cache's own "
        "files, and more --samples come nearer.",
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
    ]
    return _of_sides(report, "A training step", lines)


def run_table(report: Report) -> Table:
    """What a run of each side takes beside its epochs, and an epoch."""
    lines: list[tuple[str, str, Show]] = [
        ("imports", "import_seconds", _seconds),
        ("load", "load_seconds", _seconds),
        ("first steps, over usual ones", "warmup_seconds", _seconds),
        ("saving the student", "save_seconds", _seconds),
        ("the end of the process", "exit_seconds", _seconds),
        ("all of these", "fixed_seconds", _seconds),
        ("an epoch's start", "epoch_start_seconds", _seconds),
        ("epoch", "epoch_seconds", _seconds),
    ]
    return _of_sides(report, "A run (*: extrapolated)", lines)


def _of_sides(report: Report, title: str, lines: Sequence[tuple[str, str, Show]]) -> Table:
    steps = report["steps"]
    return Table(
        title=title,
        header=("", *SIDES),
        rows=tuple(
            (line, *(shown(steps[name][key], show) for name in SIDES)) for line, key, show in lines
        ),
    )


def capture_table(report: Report) -> Table:
    """The capture."""
    lines: list[tuple[str, str, Show]] = [
        ("tokens/s", "tokens_per_second", lambda v: f"{v:,.0f}"),
        ("imports", "import_seconds", _seconds),
        ("reading and tokenising", "prepare_seconds", _seconds),
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


def account_table(report: Report) -> Table:
    """Totals and break-even in time, money and energy."""
    shows: dict[str, Show] = {
        "time": _seconds,
        "money": lambda v: f"{v:,.4g}",
        "energy": lambda v: f"{v:,.4g} J",
    }
    noisy = f", {NOISY}: noisy" if noise(report) else ""
    stays = ", of a teacher that stays" if report["plan"]["teacher_changes"] else ""
    lines = (
        (f"break-even, epochs x students{stays}", "break_even", _count),
        ("break-even, students of the planned epochs", "break_even_students", _count),
        ("cached, planned", "cached_total", None),
        ("live, planned", "live_total", None),
    )
    rows = tuple(
        (title, *(_sided(report[what], key, own or show) for what, show in shows.items()))
        for title, key, own in lines
    )
    return Table(
        title=f"Where both ways meet, and what is planned (*: extrapolated{noisy})",
        header=("", *shows),
        rows=rows,
    )


def _sided(account: Mapping[str, Any], key: str, show: Show) -> str:
    """A value of an account; of a break-even that a cache is cheaper up to, that."""
    before = key == "break_even" and account.get("pays") == "up to"
    return ("up to " if before else "") + shown(account[key], show)


def sensitivity_tables(report: Report) -> list[Table]:
    """The break-even in time with teachers of other sizes; none where that is a gap."""
    found = report["sensitivity"]
    if "rows" not in found:
        return []
    words = {"from": "", "up to": "up to ", "never": "never"}
    rows = tuple(
        (
            f"{row['ratio']:g}",
            words[row["pays"]] + ("" if row["break_even"] is None else _count(row["break_even"])),
        )
        for row in found["rows"]
    )
    return [
        Table(
            title=f"Another teacher (extrapolated; measured at {found['measured_at']:.3g})",
            header=("active parameters, teacher / student", "break-even, epochs x students"),
            rows=rows,
        )
    ]


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
    star = "*" if quantity["kind"] == "extrapolated" else ""
    return show(quantity["value"]) + star + mark(quantity)


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
