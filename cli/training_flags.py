"""Flags of commands that train: their own, those of an objective, and `TrainingArguments`'s.

In: what click and a YAML file give. Out: the settings of a command whose dataclass has
``objective_options`` and ``training``.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from cachekd.errors import ConfigError
from cachekd.plugins import available, find

from .options import Dashed, build, dashed, options_of, read_yaml, refuse_unknown, values_of

NOT_FLAGS = frozenset({"training", "objective_options"})


class TrainingCommand(Dashed):
    """Adds the flags of the objective that the arguments name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Find the objective first, then parse."""
        ctx.meta["objective"] = _objective_name(args)
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Own options and those of the objective."""
        objective = find("objectives", ctx.meta.get("objective", "kd"))
        return [*super().get_params(ctx), *options_of(objective.Options)]


def _objective_name(args: Sequence[str]) -> str:
    """The objective that flags, environment or YAML ask for."""
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    scan.add_argument("--objective", default=os.environ.get("CACHEKD_OBJECTIVE"))
    scan.add_argument("--config")
    found, _ = scan.parse_known_args(dashed(args))
    if found.objective is None and found.config and os.path.exists(found.config):
        found.objective = read_yaml(found.config).get("objective")
    return str(found.objective or "kd")


def settings(
    kind: type,
    given: Mapping[str, Any],
    from_yaml: Mapping[str, Any],
    options: Any,
    extra: Sequence[str],
    where: str,
    check: Callable[[Any], object] | None = None,
) -> Any:
    """The settings of a command.

    Args:
        kind: dataclass of the command's settings.
        given: values of its flags and of the objective's.
        from_yaml: keys of the YAML file.
        options: dataclass of the objective's options.
        extra: arguments that click does not know: fields of `TrainingArguments`.
        where: name of the YAML file.
        check: called with the settings as they are without fields of `TrainingArguments`, which
            only a library that takes seconds to import can read.

    Raises:
        ConfigError: a key or flag that nobody knows, or a value that cannot be used.
    """
    own = {field.name for field in dataclasses.fields(kind)}
    of_objective = {field.name for field in dataclasses.fields(options)}
    plain = {key: value for key, value in from_yaml.items() if key not in NOT_FLAGS}
    values = values_of(kind, {k: v for k, v in given.items() if k in own}, plain)
    nested = from_yaml.get("objective_options") or {}
    refuse_unknown(list(nested), list(of_objective), f"{where}: objective_options")
    chosen = values_of(options, given, {**nested, **plain})
    if check is not None:
        check(build(kind, {**values, "objective_options": chosen}))
    training = _training(kind, from_yaml, options, extra, where)
    return build(kind, {**values, "training": training, "objective_options": chosen})


def _training(
    kind: type, from_yaml: Mapping[str, Any], options: Any, extra: Sequence[str], where: str
) -> dict[str, Any]:
    """Fields of `TrainingArguments` that were given, under ``training`` or beside it."""
    own = {field.name for field in dataclasses.fields(kind)}
    of_objective = {field.name for field in dataclasses.fields(options)}
    training = dict(from_yaml.get("training") or {})
    training = {str(key).replace("-", "_"): value for key, value in training.items()}
    further = {key: v for key, v in from_yaml.items() if key not in own | of_objective}
    if further:
        arguments = _argument_names()
        refuse_unknown(list(further), [*own, *of_objective, *arguments], where)
        training |= further
    scalars = {k: v for k, v in training.items() if isinstance(v, str | int | float)}
    if scalars or extra:
        refuse_unknown(list(training), _argument_names(), f"{where}: training")
        as_flags = [f"--{key}={value}" for key, value in scalars.items()]
        training |= _parse_arguments([*as_flags, *extra], kind, options)
    return training


def _argument_names() -> list[str]:
    from transformers import TrainingArguments

    return [field.name for field in dataclasses.fields(TrainingArguments)]


def _refuse_of_others(name: str) -> None:
    """Refuse an option that another objective has."""
    having = [
        objective
        for objective in available("objectives")
        if name
        in (field.name for field in dataclasses.fields(find("objectives", objective).Options))
    ]
    if having:
        raise ConfigError(f"flags: {name!r} is an option of the objectives {', '.join(having)}")


def _parse_arguments(extra: Sequence[str], kind: type, options: Any) -> dict[str, Any]:
    """Flags of `TrainingArguments` that were given, each of its type, and no defaults.

    Raises:
        ConfigError: a flag that nobody knows, or a value of the wrong type.
    """
    from transformers import HfArgumentParser, TrainingArguments

    parser = HfArgumentParser(TrainingArguments, allow_abbrev=False, exit_on_error=False)
    absent = object()
    start = argparse.Namespace(**dict.fromkeys(_argument_names(), absent))
    try:
        found, unknown = parser.parse_known_args(list(extra), namespace=start)
    except (argparse.ArgumentError, SystemExit) as error:
        raise ConfigError(f"training flags: {error}") from error
    if unknown:
        names = [item[2:].partition("=")[0].replace("-", "_") for item in unknown[:1]]
        known = [f.name for f in dataclasses.fields(kind)] + _argument_names()
        if unknown[0].startswith("--"):
            known += [field.name for field in dataclasses.fields(options)]
            _refuse_of_others(names[0])
            refuse_unknown(names, known, "flags")
        raise ConfigError(f"unexpected argument {unknown[0]!r}")
    return {name: value for name, value in vars(found).items() if value is not absent}
