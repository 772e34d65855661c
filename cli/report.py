"""``cachekd report``: one page about a cache, or about training runs."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from cachekd.config import RecheckConfig, ReportConfig
from cachekd.errors import ConfigError

from .options import (
    CONFIG_OPTION,
    JSON_OPTION,
    Dashed,
    build,
    options_of,
    read_yaml,
    refuse_unknown,
    values_of,
)
from .output import emit
from .progress import Stages


def run(paths: tuple[str, ...], config: str | None, as_json: bool, **given: Any) -> None:
    """Write one HTML page about a cache, or about one or several training runs.

    Of a cache: what its rows keep and lose, what it takes by kind and column, how certain the
    teacher is, its most and least certain passages as shaded text, and who made it of what. With
    --teacher some records are scored again, for the KL of the dense teacher to what is stored.

    Of runs (output folders of cachekd train): curves, final figures, what differs between their
    settings, and mean and deviation of those that differ by their seed alone.

    Example:
        cachekd report ./cache --teacher ./teacher --plots-dir figures
    """
    from_yaml = read_yaml(config)
    refuse_unknown(list(from_yaml), [option.name or "" for option in OPTIONS], config or "")
    values = values_of(ReportConfig, given, from_yaml)
    from cachekd.overview import make_report
    from cachekd.overview.find import is_run

    found = values_of(RecheckConfig, given, from_yaml)
    if all(map(is_run, paths)):
        found, values = _without_environment(found), _without_environment(values)
    recheck = _teacher(found, values, list(from_yaml))
    if not as_json and values.get("out") is None:
        values["out"] = "runs.html" if all(map(is_run, paths)) else "cache.html"
    settings = build(ReportConfig, {**values, "paths": paths, "recheck": recheck})

    with Stages("records") as progress:
        report = make_report(settings, progress=progress)
    if as_json:
        emit(report, as_json=True)
        return
    from cachekd.overview.said import said

    click.echo("\n\n".join(said(report)))
    click.echo(f"\nPage: {report['page']}")
    if report["plots"]:
        click.echo(f"Figures: {len(report['plots'])} PNG files in {settings.plots_dir}")


def _without_environment(values: dict[str, Any]) -> dict[str, Any]:
    """Values without a teacher that the environment holds for other commands."""
    source = click.get_current_context().get_parameter_source
    return {
        name: value
        for name, value in values.items()
        if name not in ("teacher", "tokenizer") or source(name) is not ParameterSource.ENVIRONMENT
    }


def _teacher(
    found: dict[str, Any], values: dict[str, Any], from_yaml: list[str]
) -> RecheckConfig | None:
    """The teacher, if one is named; a setting of a teacher that is not named is refused."""
    shared = {"seed", "tokenizer"}
    if "teacher" in found:
        given = {key: value for key, value in found.items() if key not in shared}
        own: RecheckConfig = build(RecheckConfig, given | {"tokenizer": values.get("tokenizer")})
        return own
    source = click.get_current_context().get_parameter_source
    idle = [
        name
        for name in found
        if name not in shared and (name in from_yaml or source(name) is ParameterSource.COMMANDLINE)
    ]
    if idle:
        flag = idle[0].replace("_", "-")
        raise ConfigError(f"--{flag} is for scoring records again; name the teacher: --teacher")
    return None


OPTIONS = [
    *options_of(ReportConfig, skip=frozenset({"paths", "recheck"})),
    *options_of(RecheckConfig, skip=frozenset({"samples", "seed", "tokenizer"})),
]
command = Dashed(
    "report",
    callback=run,
    help=run.__doc__,
    params=[
        click.Argument(["paths"], nargs=-1, required=True),
        *OPTIONS,
        CONFIG_OPTION,
        JSON_OPTION,
    ],
)
