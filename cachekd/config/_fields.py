"""Fields of settings with the text that ``--help`` shows, and JSON of settings."""

from __future__ import annotations

import json
from dataclasses import MISSING, Field, asdict, field, fields
from typing import Any

from cachekd.errors import ConfigError


def option(default: Any, help: str, *, choices: tuple[str, ...] = (), group: str = "") -> Any:
    """A dataclass field with the text and choices that the command line shows."""
    metadata = {"help": help, "choices": choices, "group": group}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def required(help: str, *, group: str = "") -> Any:
    """A dataclass field without default."""
    return field(metadata={"help": help, "choices": (), "group": group})


def default_of(item: Field[Any]) -> Any:
    """Default of a field that has one."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def check_choices(config: Any) -> None:
    """Refuse values outside the choices of their field.

    Raises:
        ConfigError: names the field, its choices and the value found.
    """
    for item in fields(config):
        choices = item.metadata.get("choices", ())
        value = getattr(config, item.name)
        if choices and value is not None and value not in choices:
            raise ConfigError(f"{item.name}: expected one of {', '.join(choices)}; found {value!r}")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the text that identity digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def resolved(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON types, for run records and reports.

    Of options of a filesystem the names alone: they may hold secrets.
    """
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    if plain.get("storage_options"):
        plain["storage_options"] = dict.fromkeys(plain["storage_options"], "...")
    return plain
