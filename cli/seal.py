"""``cachekd seal``: close what is committed under one manifest."""

from __future__ import annotations

import click

from cachekd.store.io import Location
from cachekd.store.names import shown
from cachekd.store.seal import seal

from .locations import with_locations
from .options import JSON_OPTION
from .output import emit


def run(cache: str, as_json: bool) -> None:
    """Seal a cache whose capture ran with --no-seal.

    Example:
        cachekd seal ./cache
    """
    sealed = seal(Location(cache))
    emit(
        {
            "cache": shown(cache),
            "generation": sealed.generation,
            "root": sealed.root,
            **sealed.totals,
        },
        as_json=as_json,
    )


command = with_locations("seal", run, [click.Argument(["cache"]), JSON_OPTION])
