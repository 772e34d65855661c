"""Carrying a reproduction out: learning rates, runs over seeds, verdicts, the file of the result.

In: a `Reproduction`. Out: ``results/reproduce_<name>.json``, and its tables as Markdown on stdout.
Every run is written to the journal of the work folder when it ends, so that the same command
continues a stopped one. Learning rates are chosen with the first seed, on data of their own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from journal import Journal
from measure import HeldOut, figures_of
from orderings import Ordering, Run, judged, markdown, markdown_orderings, summary
from settings import Settings
from ways import Way, trained

sys.path.append(str(Path(__file__).parents[1]))  # what all benchmarks share

from common import save

_CHOSEN_BY = "rouge_l"
_DRAWS_OF_SEARCH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """What is run, what is looked at, and what a paper says of it.

    Attributes:
        name: of the file of results.
        title: stands above the tables.
        settings: sizes, models and data.
        ways: rows of the table.
        dev: what learning rates are chosen on.
        looks: what every student is looked at with; figures have the name of the look before
            theirs, where it has one.
        orderings: of the paper.
        columns: figures of the Markdown table, with their headings.
        facts: further entries of the result, from its rows.
    """

    name: str
    title: str
    settings: Settings
    ways: tuple[Way, ...]
    dev: HeldOut
    looks: tuple[HeldOut, ...]
    orderings: tuple[Ordering, ...]
    columns: Mapping[str, str]
    facts: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]] = field(
        default=lambda rows: {}
    )


def journal_of(settings: Settings) -> Journal:
    """The journal of the settings' work folder."""
    return Journal(Path(settings.work) / "runs.jsonl", settings.of_runs())


def carry_out(what: Reproduction, journal: Journal) -> dict[str, Any]:
    """Run what is not in the journal, judge, print and save."""
    rates = {}
    for way in what.ways:
        if way.family not in rates:
            rates[way.family] = _rate(what, journal, way)
    for seed in what.settings.seeds:
        for way in what.ways:
            _run(what, journal, way, seed, rates[way.family])
    result = result_of(what, journal.all("search"), journal.all("run"), rates)
    ending = f"_{what.settings.label}" if what.settings.label else ""
    save(f"reproduce_{what.name}{ending}", result, Path(what.settings.results))
    print(f"\n### {what.title}\n")
    print(markdown(result["table"], what.columns))
    print(f"\n{markdown_orderings(result['orderings'])}")
    return result


def result_of(
    what: Reproduction,
    searches: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    rates: Mapping[str, float],
) -> dict[str, Any]:
    """Table, orderings and times of what was run; pure."""
    wanted = [
        record
        for record in records
        if record["seed"] in what.settings.seeds
        and any(
            way.name == record["way"] and record["learning_rate"] == rates[way.family]
            for way in what.ways
        )
    ]
    runs = [Run(way=r["way"], seed=r["seed"], figures=r["figures"]) for r in wanted]
    table = summary(runs)
    for row in table:
        own = [record for record in wanted if record["way"] == row["way"]]
        row["steps"] = own[0]["trained"]["steps"]
        row["learning_rate"] = own[0]["learning_rate"] if row["steps"] else None
        row["seconds_of_runs"] = [record["seconds"] for record in own]
    return {
        "title": what.title,
        "settings": what.settings.told(),
        "learning_rates": [
            {k: one[k] for k in ("family", "way", "learning_rate", "rouge_l")} for one in searches
        ],
        "table": table,
        "orderings": [judged(ordering, runs) for ordering in what.orderings],
        "seconds": round(sum(one["seconds"] for one in [*searches, *wanted]), 1),
        **what.facts(table),
    }


def _rate(what: Reproduction, journal: Journal, way: Way) -> float:
    """The learning rate of a family, by the ROUGE-L of one of its ways and one seed."""
    rates, seed = what.settings.learning_rates, what.settings.seeds[0]
    if len(rates) == 1 or way.objective is None:
        return rates[0]
    found = []
    for rate in rates:
        key = {"family": way.family, "way": way.name, "learning_rate": rate, "seed": seed}
        record = journal.find("search", **key)
        if record is None:
            begun = time.monotonic()
            student, _ = trained(what.settings, way, seed, rate)
            draws = what.settings.draws[:_DRAWS_OF_SEARCH]
            figures = figures_of(what.settings, student, what.dev, draws)
            seconds = round(time.monotonic() - begun, 1)
            record = journal.add("search", **key, rouge_l=figures[_CHOSEN_BY], seconds=seconds)
            _say(f"{way.family}: rate {rate:g} has ROUGE-L {record['rouge_l']} ({seconds} s)")
        found.append(record)
    return float(max(found, key=lambda one: one["rouge_l"] or 0.0)["learning_rate"])


def _run(what: Reproduction, journal: Journal, way: Way, seed: int, rate: float) -> None:
    """Train and look, unless the journal has it. Draws differ between seeds, not between ways."""
    key = {"way": way.name, "seed": seed, "learning_rate": rate}
    if journal.find("run", **key):
        return
    begun = time.monotonic()
    student, told = trained(what.settings, way, seed, rate)
    figures: dict[str, Any] = {}
    for look in what.looks:
        draws = [draw + seed for draw in what.settings.draws]
        found = figures_of(what.settings, student, look, draws)
        figures |= {f"{look.name} {name}".strip(): value for name, value in found.items()}
    seconds = round(time.monotonic() - begun, 1)
    journal.add("run", **key, figures=figures, trained=told, seconds=seconds)
    _say(f"{way.name}, seed {seed}: {seconds} s")


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
