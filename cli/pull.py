"""``cachekd pull``: a shared cache, or a part of it, to a folder of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cachekd.config import PullConfig

from .options import CONFIG_OPTION, JSON_OPTION, Dashed, given_config, options_of
from .output import emit
from .progress import Counted

if TYPE_CHECKING:
    from cachekd.capture.replay import Asked


def run(location: str, cache: str, config: str | None, as_json: bool, **given: Any) -> None:
    """Fetch a shared cache, or the part of it that you need, and seal it.

    Only what is missing travels; what was cut off is continued by the same command.

    Example:
        cachekd pull s3://team/caches/news ./news --keys-from mine.jsonl
    """
    places = {"location": location, "cache": cache}
    settings = given_config(PullConfig, given, config, OPTIONS, places)
    from cachekd.sharing.pull import pull

    asked = _asked(settings) if settings.keys_from else None
    with Counted("pull", "bytes") as bar:
        report = pull(settings, keys=asked.keys if asked else None, step=bar)
    told = {"rows_skipped": asked.rows_skipped} if asked else {}
    emit({**told, **report}, as_json=as_json)


def _asked(settings: PullConfig) -> Asked:
    """Keys of the data, as the shared cache has them."""
    from cachekd.capture.replay import keys_of_data
    from cachekd.sharing.choose import samples_of
    from cachekd.sharing.content import sealed_content
    from cachekd.store.io import Location
    from cachekd.store.settings import using

    with using(settings):
        content = sealed_content(Location(settings.location))
        longest = samples_of(content).lengths.max(initial=2) if settings.on_long != "fail" else 2
    source = content.identity.source
    return keys_of_data(
        "pull",
        settings.rows,
        content.identity.provenance,
        source["tokenizer"],
        tokenizer=settings.tokenizer,
        longest=int(longest),
        vocab_size=int(source["vocab_size"]),
        on_long=settings.on_long,
    )


OPTIONS = options_of(PullConfig, skip=frozenset({"cache", "location"}))
command = Dashed(
    "pull",
    callback=run,
    help=run.__doc__,
    params=[
        click.Argument(["location"]),
        click.Argument(["cache"]),
        *OPTIONS,
        CONFIG_OPTION,
        JSON_OPTION,
    ],
)
