"""``cachekd push``: a sealed cache to a place where others find it."""

from __future__ import annotations

from typing import Any

import click

from cachekd.config import PushConfig

from .options import CONFIG_OPTION, JSON_OPTION, Dashed, given_config, options_of
from .output import emit
from .progress import Counted


def run(cache: str, location: str, config: str | None, as_json: bool, **given: Any) -> None:
    """Send a sealed cache to a folder, a bucket or the hub; only what is missing there travels.

    Half of a push is no cache yet: the same command continues it. To a dataset repo of the hub
    it goes with a card: hf://datasets/OWNER/NAME.

    Example:
        cachekd push ./news s3://team/caches/news
    """
    places = {"cache": cache, "location": location}
    settings = given_config(PushConfig, given, config, OPTIONS, places)
    from cachekd.sharing.push import push

    with Counted("push", "bytes") as bar:
        report = push(settings, step=bar)
    emit(report, as_json=as_json)


OPTIONS = options_of(PushConfig, skip=frozenset({"cache", "location"}))
command = Dashed(
    "push",
    callback=run,
    help=run.__doc__,
    params=[
        click.Argument(["cache"]),
        click.Argument(["location"]),
        *OPTIONS,
        CONFIG_OPTION,
        JSON_OPTION,
    ],
)
