"""``cachekd verify``: digests, counts and records of a whole cache; with a teacher, its scores."""

from __future__ import annotations

import sys
from typing import Any

import click
from click.core import ParameterSource

from cachekd.config import RecheckConfig
from cachekd.errors import EXIT_CORRUPT, ConfigError
from cachekd.store.io import shown
from cachekd.store.reader import open_cache
from cachekd.store.verify import verify

from .options import JSON_OPTION, Dashed, build, options_of, values_of
from .output import emit


def run(cache: str, partial: bool, as_json: bool, **given: Any) -> None:
    """Check every file, digest, count and record of a cache; exit code 4 if something is wrong.

    With --teacher, a random sample of records is scored again, alone and in batches: what is stored
    must not differ from that by more than the teacher differs from itself. Another teacher than
    the cache's is refused with exit code 5.

    Example:
        cachekd verify ./cache --teacher ./teacher
    """
    values = values_of(RecheckConfig, given, {})
    if "teacher" not in values:
        _refuse_idle(list(values))
    report = verify(cache, partial=partial)
    problems = list(report.problems)
    result: dict[str, Any] = {
        "cache": shown(cache),
        "sealed": report.sealed,
        "files_checked": report.files,
        "records_checked": report.records,
    }
    if "teacher" in values and not problems:
        again = _score_again(cache, partial, values)
        problems += again.pop("problems")
        result |= again if as_json else _flat(again)
    for problem in problems:
        click.echo(f"corrupt: {problem}", err=True)
    emit(result | {"problems": problems if as_json else len(problems)}, as_json=as_json)
    if problems:
        sys.exit(EXIT_CORRUPT)


def _refuse_idle(names: list[str]) -> None:
    """Refuse flags that do nothing without a teacher; the environment may hold them for others."""
    source = click.get_current_context().get_parameter_source
    for name in names:
        if source(name) is ParameterSource.COMMANDLINE:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is for scoring records again; name the teacher: --teacher")


def _score_again(cache: str, partial: bool, values: dict[str, Any]) -> dict[str, Any]:
    from cachekd.evaluation.recheck import recheck

    opened = open_cache(cache, partial=partial)
    attention = opened.identity.capture["attn_implementation"]
    settings = build(RecheckConfig, {"attn_implementation": attention, **values})
    return recheck(opened, settings)


def _flat(report: dict[str, Any]) -> dict[str, Any]:
    """The report for a terminal: a line a quantity."""
    lines = {
        f"{name}, nats": f"off by {found['difference_largest']:.2g} at most, "
        f"{found['difference_mean']:.2g} in the mean (batch shapes: {found['noise_largest']:.2g}, "
        f"{found['noise_mean']:.2g})"
        for name, found in report["differences"].items()
    }
    return {key: value for key, value in report.items() if key != "differences"} | lines


command = Dashed(
    "verify",
    callback=run,
    help=run.__doc__,
    params=[
        click.Argument(["cache"]),
        click.Option(["--partial"], is_flag=True, help="Verify what is committed, sealed or not."),
        *options_of(RecheckConfig),
        JSON_OPTION,
    ],
)
