"""``cachekd verify``: digests, counts and decodability of a whole cache."""

from __future__ import annotations

import sys

import click

from cachekd.errors import EXIT_CORRUPT
from cachekd.store.verify import verify

from .options import JSON_OPTION, Dashed
from .output import emit


def run(cache: str, partial: bool, as_json: bool) -> None:
    """Check every file, digest, count and record of a cache; exit code 4 if something is wrong.

    Example:
        cachekd verify ./cache
    """
    report = verify(cache, partial=partial)
    for problem in report.problems:
        click.echo(f"corrupt: {problem}", err=True)
    result = {
        "cache": cache,
        "sealed": report.sealed,
        "files_checked": report.files,
        "records_checked": report.records,
        "problems": list(report.problems) if as_json else len(report.problems),
    }
    emit(result, as_json=as_json)
    if report.problems:
        sys.exit(EXIT_CORRUPT)


command = Dashed(
    "verify",
    callback=run,
    help=run.__doc__,
    params=[
        click.Argument(["cache"]),
        click.Option(["--partial"], is_flag=True, help="Verify what is committed, sealed or not."),
        JSON_OPTION,
    ],
)
