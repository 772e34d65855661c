"""``cachekd merge``: the union of caches of one identity, as it is or packed anew."""

from __future__ import annotations

import click

from cachekd.store.merge import merge
from cachekd.store.names import shown
from cachekd.store.recode import recode

from .options import JSON_OPTION, Dashed
from .output import emit


def run(caches: tuple[str, ...], out: str, again: bool, as_json: bool) -> None:
    """Unite caches of one teacher and capture into one; shards are copied, not rewritten.

    With --recode every record is packed anew, with a prior learned from all of them: smaller
    files, the same values. One cache may be recoded alone.

    Example:
        cachekd merge ./first ./second --out ./both
        cachekd merge ./cache --recode --out ./smaller
    """
    summary: dict[str, object] = {"cache": shown(out)}
    if again:
        done = recode(caches, out)
        sealed = done.manifest
        summary |= {"bytes_before": done.bytes_before, "bytes_after": done.bytes_after}
    else:
        sealed = merge(caches, out)
    summary |= {"generation": sealed.generation, "root": sealed.root, **sealed.totals}
    emit(summary, as_json=as_json)


command = Dashed(
    "merge",
    callback=run,
    help=run.__doc__,
    params=[
        click.Argument(["caches"], nargs=-1, required=True),
        click.Option(["--out"], required=True, help="The united cache; may exist already."),
        click.Option(
            ["--recode", "again"],
            is_flag=True,
            help="Pack all records anew, with a prior learned from all; --out is a new cache.",
        ),
        JSON_OPTION,
    ],
)
