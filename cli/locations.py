"""Flags of commands that open a cache anywhere: how it is reached, and held on this machine's disk.

Commands whose settings hold a `LocationConfig` have these flags by that; the others wrap their
callback with `with_locations`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from cachekd.config import LocationConfig

from .options import Dashed, build, options_of, values_of


def with_locations(name: str, callback: Callable[..., None], params: list[Any]) -> Dashed:
    """A command with the flags of `LocationConfig`, which hold while its callback runs."""
    names = frozenset(LocationConfig.__dataclass_fields__)

    @functools.wraps(callback)
    def run(**given: Any) -> None:
        from cachekd.store.settings import using

        own = {key: given.pop(key) for key in names}
        with using(build(LocationConfig, values_of(LocationConfig, own, {}))):
            callback(**given)

    return Dashed(
        name, callback=run, help=callback.__doc__, params=[*params, *options_of(LocationConfig)]
    )
