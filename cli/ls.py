"""``cachekd ls``: caches below a shared location, and which of them has a teacher on some data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cachekd.config import LsConfig
from cachekd.errors import CachekdError

from .options import CONFIG_OPTION, JSON_OPTION, Dashed, given_config, options_of
from .output import emit, table_text

if TYPE_CHECKING:
    from cachekd.sharing.catalogue import Entry
    from cachekd.store.io import Location


def run(location: str, config: str | None, as_json: bool, **given: Any) -> None:
    """List the caches below a location: teacher, data, kinds of target, sizes, date of the seal.

    With --teacher and --data: who already has this teacher on this data? The share of the data's
    records that each cache covers is told.

    Example:
        cachekd ls s3://team/caches --teacher ./teacher --data train.jsonl
    """
    settings = given_config(LsConfig, given, config, OPTIONS, {"location": location})
    from cachekd.sharing.catalogue import entries
    from cachekd.sharing.listed import line, of_teacher
    from cachekd.store.io import Location
    from cachekd.store.settings import using

    with using(settings):
        place = Location(location)
        found, problems = entries(place)
        told: list[tuple[Entry, dict[str, Any]]] = [(entry, {}) for entry in found]
        if settings.teacher:
            matches = of_teacher(found, settings.teacher, _source_id(settings.teacher))
            told = [(entry, {"known_by": known_by}) for entry, known_by in matches]
        lines = [
            {**line(entry), **more, **_covered(settings, place, entry)} for entry, more in told
        ]
    lines.sort(key=lambda one: (-(one.get("covered") or 0.0), one["cache"]))
    for problem in problems:
        click.echo(f"left out: {problem}", err=True)
    if as_json:
        emit({"location": place.url, "caches": lines, "left_out": problems}, as_json=True)
    else:
        click.echo(_table(lines) if lines else f"no sealed cache directly below {place.url}")


def _source_id(teacher: str) -> str | None:
    """The source id of a teacher that is there, else None: then its name is compared."""
    from pathlib import Path

    if not Path(teacher).is_dir():
        return None
    from cachekd.capture.identify import bare_identity
    from cachekd.config import PrecomputeConfig
    from cachekd.plugins import find
    from cachekd.store.tokenizer import tokenizer_facts

    asked = PrecomputeConfig(teacher=teacher, data=("-",), cache="-")
    facts = find("teachers", asked.backend).identify(asked)
    return bare_identity(asked, facts, tokenizer_facts(facts.tokenizer_folder)).source_id


def _covered(settings: LsConfig, place: Location, entry: Entry) -> dict[str, Any]:
    """The share of the data that a cache covers; a gap where its tokens cannot be made."""
    if not settings.data:
        return {}
    from cachekd.capture.replay import keys_of_data
    from cachekd.sharing.listed import covered

    try:
        asked = keys_of_data(
            "ls",
            settings,
            entry.provenance,
            entry.tokenizer,
            tokenizer=settings.tokenizer or settings.teacher,
            longest=entry.longest,
            vocab_size=entry.vocab_size,
        )
        return {**covered(place, entry, asked.keys), "rows_skipped": asked.rows_skipped}
    except CachekdError as error:
        return {"covered": None, "covered_exactly": False, "not_counted": str(error)}


def _table(lines: list[dict[str, Any]]) -> str:
    from cachekd.report.curves import Table

    header = ("cache", "teacher", "data", "kinds", "samples", "tokens", "MB", "sealed")
    counted = any("covered" in one for one in lines)
    rows = []
    for one in lines:
        row = [
            one["cache"],
            str(one["teacher"]) + (" (by name)" if one.get("known_by") == "name" else ""),
            ", ".join(one["data"][:2]) + (", ..." if len(one["data"]) > 2 else ""),
            "+".join(one["kinds"]),
            f"{one['samples']:,}",
            f"{one['tokens']:,}",
            f"{one['bytes'] / 1e6:,.1f}",
            (one["sealed_at"] or "not known")[:10],
        ]
        rows.append((*row, _share(one)) if counted else tuple(row))
    last = ("covered",) if counted else ()
    return table_text(Table(title="", header=(*header, *last), rows=tuple(rows)))


def _share(one: dict[str, Any]) -> str:
    if "not_counted" in one:
        return "not counted"
    share = f"{'' if one['covered_exactly'] else 'about '}{100 * one['covered']:.1f} %"
    skipped = one["rows_skipped"]
    return f"{share} (without {skipped:,} rows that cannot be used)" if skipped else share


OPTIONS = options_of(LsConfig, skip=frozenset({"location"}))
command = Dashed(
    "ls",
    callback=run,
    help=run.__doc__,
    params=[
        click.Argument(["location"], default="."),
        *OPTIONS,
        CONFIG_OPTION,
        JSON_OPTION,
    ],
)
