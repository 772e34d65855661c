"""Finding plugins by name: the file name is the plugin name.

Objectives, codecs, teachers, chunkers, engines and exchange formats are found so.

A plugin is a module of ``cachekd/<kind>/`` that has ``PLUGIN``, an entry point of the group
``cachekd.<kind>``, or ``package.module:Class``. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from cachekd.errors import ConfigError

Kind = Literal["objectives", "codecs", "teachers", "chunkers", "engines", "exchange"]


def available(kind: Kind) -> list[str]:
    """Names that `find` accepts for a kind, sorted."""
    outside = {point.name for point in _points(kind, tuple(sys.path))}
    return sorted(_modules(kind) | outside)


@cache
def _modules(kind: Kind) -> frozenset[str]:
    package = importlib.import_module(f"cachekd.{kind}")
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return frozenset(name for name in names if not name.startswith("_"))


# Every shard that is opened asks for its codec: looking through all that is installed takes longer
# than opening a small shard. A folder that comes to the path later is looked at.
@cache
def _points(kind: Kind, _path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=f"cachekd.{kind}"))


def find(kind: Kind, name: str) -> Any:
    """The plugin of this name: what its module calls ``PLUGIN``, or the named object.

    Raises:
        ConfigError: there is no such plugin; says which names are near and which exist.
    """
    if ":" in name:
        return _from_path(name)
    for point in _points(kind, tuple(sys.path)):
        if point.name == name:
            return point.load()
    if name not in _modules(kind):
        names = available(kind)
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        one = "exchange format" if kind == "exchange" else kind[:-1]
        raise ConfigError(f"no {one} {name!r}.{hint} Available: {', '.join(names)}")
    return importlib.import_module(f"cachekd.{kind}.{name}").PLUGIN


def _from_path(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{name!r} cannot be imported as module:Class: {error}") from error
