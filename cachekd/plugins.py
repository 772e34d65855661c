"""Finding objectives, codecs, teachers and chunkers by name: the file name is the plugin name.

A plugin is a module of ``cachekd/<kind>/`` that has ``PLUGIN``, an entry point of the group
``cachekd.<kind>``, or ``package.module:Class``. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from cachekd.errors import ConfigError

Kind = Literal["objectives", "codecs", "teachers", "chunkers"]


def available(kind: Kind) -> list[str]:
    """Names that `find` accepts for a kind, sorted."""
    package = importlib.import_module(f"cachekd.{kind}")
    inside = {
        module.name
        for module in pkgutil.iter_modules(package.__path__)
        if not module.name.startswith("_")
    }
    outside = {point.name for point in _outside(kind)}
    return sorted(inside | outside)


def find(kind: Kind, name: str) -> Any:
    """The plugin of this name: what its module calls ``PLUGIN``, or the named object.

    Raises:
        ConfigError: there is no such plugin; says which names are near and which exist.
    """
    if ":" in name:
        return _from_path(name)
    for point in _outside(kind):
        if point.name == name:
            return point.load()
    names = available(kind)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no {kind[:-1]} {name!r}.{hint} Available: {', '.join(names)}")
    return importlib.import_module(f"cachekd.{kind}.{name}").PLUGIN


@functools.cache
def _outside(kind: Kind) -> tuple[EntryPoint, ...]:
    """What installed packages bring; looking through all of them takes tens of milliseconds."""
    return tuple(entry_points(group=f"cachekd.{kind}"))


def _from_path(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{name!r} cannot be imported as module:Class: {error}") from error
