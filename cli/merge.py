"""``cachekd merge``: the union of caches of one identity."""

from __future__ import annotations

import click

from cachekd.store.merge import merge

from .options import JSON_OPTION, Dashed
from .output import emit


def run(caches: tuple[str, ...], out: str, as_json: bool) -> None:
    """Unite caches of one teacher and capture into one; shards are copied, not rewritten.

    Example:
        cachekd merge ./first ./second --out ./both
    """
    sealed = merge(caches, out)
    emit(
        {"cache": out, "generation": sealed.generation, "root": sealed.root, **sealed.totals},
        as_json=as_json,
    )


command = Dashed(
    "merge",
    callback=run,
    help=run.__doc__,
    params=[
        click.Argument(["caches"], nargs=-1, required=True),
        click.Option(["--out"], required=True, help="The united cache; may exist already."),
        JSON_OPTION,
    ],
)
