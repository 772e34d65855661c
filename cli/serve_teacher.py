"""``cachekd serve-teacher``: a teacher for other processes, over HTTP."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click

from cachekd.config import SelectionConfig, ServeConfig

from .options import (
    CONFIG_OPTION,
    JSON_OPTION,
    Dashed,
    Setting,
    build,
    options_of,
    read_yaml,
    refuse_unknown,
    values_of,
)
from .output import emit


def run(config: str | None, as_json: bool, **given: Any) -> None:
    """Score documents for other processes, over HTTP.

    Runs until it is told to stop (Ctrl-C or SIGTERM), and answers what it has accepted before it
    ends. With --json, one JSON object with the URL is printed when requests are answered.

    Example:
        cachekd serve-teacher --teacher ./teacher --port 8765
    """
    from_yaml = read_yaml(config)
    refuse_unknown(list(from_yaml), [option.name or "" for option in OPTIONS], config or "")
    settings = build(ServeConfig, values_of(ServeConfig, given, from_yaml))
    from cachekd.serving.server import serve

    def ready(facts: dict[str, Any]) -> None:
        click.echo(f"serving {facts['teacher']} at {facts['url']}", err=True)
        if as_json:
            emit(facts, as_json=True)

    ended = serve(settings, ready=ready)
    click.echo(f"stopped; {ended['answered']} requests answered", err=True)


# What is kept of a distribution is each client's choice; the token has an environment variable
# of its own, so that it is not that of a client on the same machine.
_NO_FLAG = frozenset({"token", *(item.name for item in fields(SelectionConfig))})
_TOKEN = Setting(
    ["--token"],
    default=None,
    envvar="CACHEKD_SERVE_TOKEN",
    heading="Server",
    help=ServeConfig.__dataclass_fields__["token"].metadata["help"],
)
OPTIONS = [*options_of(ServeConfig, skip=_NO_FLAG), _TOKEN]
command = Dashed(
    "serve-teacher", callback=run, params=[*OPTIONS, CONFIG_OPTION, JSON_OPTION], help=run.__doc__
)
