"""Flags, environment variables and YAML keys from the fields of a configuration dataclass.

Flag > environment (``CACHEKD_<NAME>``) > YAML (``--config``) > default. Hyphens and underscores
are the same in flags and YAML keys; an unknown key is an error with a hint.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import click

from cachekd.errors import ConfigError

from .kinds import Number, Numbers, Pairs, number_of


class Setting(click.Option):
    """An option under a heading of ``--help``."""

    def __init__(self, *args: Any, heading: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading


class Dashed(click.Command):
    """A command that takes ``--some_flag`` for ``--some-flag``, with headings in its help."""

    def __init__(self, name: str | None, help: str | None = None, **kwargs: Any) -> None:
        text = inspect.cleandoc(help or "").replace("Example:\n", "\b\nExample:\n")
        super().__init__(name, help=text, **kwargs)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One section a heading, in the order of the work; then what has none."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                other = "Arguments" if isinstance(parameter, click.Argument) else "Other"
                heading = getattr(parameter, "heading", "") or other
                sections.setdefault(heading, []).append(record)
        for heading in sorted(sections, key=lambda name: name == "Other"):
            with formatter.section(heading):
                formatter.write_dl(sections[heading])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite the names of flags, never their values."""
        return super().parse_args(ctx, dashed(args))


def dashed(args: Sequence[str]) -> list[str]:
    """Arguments with underscores of flag names as hyphens."""
    result: list[str] = []
    for i, arg in enumerate(args):
        if arg == "--":
            return [*result, *args[i:]]
        name, equals, value = arg.partition("=")
        result.append(name.replace("_", "-") + equals + value if arg.startswith("--") else arg)
    return result


def options_of(config: type, *, skip: frozenset[str] = frozenset()) -> list[Setting]:
    """Options for the fields of a dataclass; none is required, so that YAML may give it."""
    hints = typing.get_type_hints(config)
    return [
        _option(field, hints[field.name])
        for field in dataclasses.fields(config)
        if field.name not in skip
    ]


def _option(field: dataclasses.Field[Any], hint: Any) -> Setting:
    flag = "--" + field.name.replace("_", "-")
    kind = _bare(hint)
    help_text = field.metadata.get("help", "")
    shown = _default_text(field)
    if shown is not None:
        help_text += f"  [default: {shown}]"
    settings: dict[str, Any] = {
        "heading": field.metadata.get("group", ""),
        "default": None,
        "help": help_text,
        "envvar": "CACHEKD_" + field.name.upper(),
    }
    if kind is bool:
        return Setting([f"{flag}/--no-{flag[2:]}"], **settings)
    origin = typing.get_origin(kind)
    if origin is tuple and typing.get_args(kind)[0] is str:
        return Setting([flag], multiple=True, **{**settings, "default": None})
    if origin is tuple:
        return Setting([flag], type=Numbers(typing.get_args(kind)[0]), **settings)
    if origin is not None and issubclass(origin, Mapping):
        number = typing.get_args(kind)[1] is float
        return Setting([flag], type=Pairs(number), multiple=True, **settings)
    choices = field.metadata.get("choices", ())
    if kind is float:
        return Setting([flag], type=Number(), **settings)
    return Setting([flag], type=click.Choice(choices) if choices else kind, **settings)


def _bare(hint: Any) -> Any:
    """A type hint without ``| None``."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def _default_text(field: dataclasses.Field[Any]) -> str | None:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        value = field.default
    else:
        return None
    if value in (None, {}, "", ()):
        return None
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, Mapping):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


CONFIG_OPTION = click.Option(
    ["--config"],
    type=click.Path(exists=True, dir_okay=False),
    help="YAML file with the same keys as the flags.",
)
JSON_OPTION = click.Option(
    ["--json", "as_json"], is_flag=True, help="Print exactly one JSON object on stdout."
)


def read_yaml(path: str | None) -> dict[str, Any]:
    """Keys of a YAML file, hyphens as underscores.

    Raises:
        ConfigError: it is not a YAML mapping.
    """
    if path is None:
        return {}
    import yaml

    try:
        with open(path, encoding="utf-8") as stream:
            content = yaml.safe_load(stream)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values; found {type(content).__name__}")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def refuse_unknown(keys: Sequence[str], known: Sequence[str], where: str) -> None:
    """Refuse keys that nobody knows.

    Raises:
        ConfigError: names the key and a near one.
    """
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{where}: unknown key {key!r}.{hint}")


def values_of(config: type, given: Mapping[str, Any], from_yaml: Mapping[str, Any]) -> Any:
    """Values of a dataclass's fields: flags and environment over YAML, each of its type.

    Raises:
        ConfigError: a value of the YAML file has the wrong type.
    """
    hints = typing.get_type_hints(config)
    values = {}
    for field in dataclasses.fields(config):
        name = field.name
        flag = given.get(name)
        if flag not in (None, (), {}):
            values[name] = _joined(flag, hints[name])
        elif name in from_yaml and from_yaml[name] is not None:
            values[name] = _from_yaml(name, from_yaml[name], _bare(hints[name]), field)
    return values


def build(config: type, values: Mapping[str, Any]) -> Any:
    """The dataclass from its values.

    Raises:
        ConfigError: a required field has none, or the dataclass refuses a value.
    """
    for field in dataclasses.fields(config):
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and field.name not in values:
            flag = field.name.replace("_", "-")
            raise ConfigError(f"--{flag} is required: {field.metadata.get('help', '')}")
    return config(**values)


def given_config(
    config: type,
    given: Mapping[str, Any],
    path: str | None,
    options: Sequence[click.Parameter],
    arguments: Mapping[str, Any],
) -> Any:
    """The dataclass from flags, environment, a YAML file and arguments that are no flags.

    Raises:
        ConfigError: see `read_yaml`, `refuse_unknown`, `values_of` and `build`.
    """
    from_yaml = read_yaml(path)
    refuse_unknown(list(from_yaml), [option.name or "" for option in options], path or "")
    return build(config, {**values_of(config, given, from_yaml), **arguments})


def _joined(flag: Any, hint: Any) -> Any:
    """Several mappings of one flag as one."""
    origin = typing.get_origin(_bare(hint))
    if origin is not None and origin is not tuple and isinstance(flag, tuple):
        return {key: value for part in flag for key, value in part.items()}
    return flag


def _from_yaml(name: str, value: Any, kind: Any, field: dataclasses.Field[Any]) -> Any:
    origin = typing.get_origin(kind)
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(_scalar(name, item, typing.get_args(kind)[0]) for item in items)
    if origin is not None:
        if not isinstance(value, dict):
            raise ConfigError(f"{name}: expected keys and values; found {value!r}")
        item_kind = typing.get_args(kind)[1]
        return {str(key): _scalar(f"{name}.{key}", v, item_kind) for key, v in value.items()}
    return _scalar(name, value, kind)


def _scalar(name: str, value: Any, kind: Any) -> Any:
    if kind is Any:
        return value
    if kind is float and isinstance(value, str):
        value = number_of(value)  # YAML reads 1e-4 as text
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{name}: expected {kind.__name__}; found {value!r}")
    return value
