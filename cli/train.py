"""``cachekd train``: train a student from caches, or on its own text with a live teacher.

Three sets of flags meet here: `TrainConfig`, the options of the chosen objective, and every field
of ``transformers.TrainingArguments``.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import click

from cachekd.config import TrainConfig
from cachekd.errors import ConfigError
from cachekd.plugins import available, find

from .options import (
    CONFIG_OPTION,
    JSON_OPTION,
    Dashed,
    build,
    dashed,
    options_of,
    read_yaml,
    refuse_unknown,
    values_of,
)
from .output import emit
from .progress import TrainProgress

_NOT_FLAGS = frozenset({"training", "objective_options"})


class TrainCommand(Dashed):
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


def run(config: str | None, as_json: bool, **given: Any) -> None:
    """Train a student from caches, with no teacher in memory; or on its own text, with a live one.

    On-policy objectives (distillm, gkd, imitkd, minillm, multi_granularity) train on text that the
    student writes: they take prompts from --data or a cache, and a live teacher.

    Beside the flags below, every field of transformers.TrainingArguments is a flag
    (--learning-rate 1e-4) or a key under training: in the YAML file.

    Example:
        cachekd train --cache ./cache --student ./student --output-dir ./out --num-train-epochs 3
        cachekd train --objective distillm --data train.jsonl --teacher ./teacher
            --student ./student --output-dir ./out --num-train-epochs 3
    """
    ctx = click.get_current_context()
    from_yaml = read_yaml(config)
    objective = find("objectives", ctx.meta["objective"])
    settings = _settings(given, from_yaml, objective.Options, ctx.args, config or "")
    from cachekd.training.run import train

    bar = TrainProgress("train")
    try:
        report = train(settings, progress=bar)
    finally:
        bar.close()
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        emit(_summary(report, as_json), as_json=as_json)


def _settings(
    given: Mapping[str, Any],
    from_yaml: Mapping[str, Any],
    options: Any,
    extra: Sequence[str],
    where: str,
) -> TrainConfig:
    own = {field.name for field in dataclasses.fields(TrainConfig)}
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
        training |= _parse_arguments([*as_flags, *extra], options)
    plain = {key: value for key, value in from_yaml.items() if key not in _NOT_FLAGS}
    values = values_of(TrainConfig, {k: v for k, v in given.items() if k in own}, plain)
    nested = from_yaml.get("objective_options") or {}
    refuse_unknown(list(nested), list(of_objective), f"{where}: objective_options")
    chosen = values_of(options, given, {**nested, **plain})
    config: TrainConfig = build(
        TrainConfig, {**values, "training": training, "objective_options": chosen}
    )
    return config


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


def _parse_arguments(extra: Sequence[str], options: Any) -> dict[str, Any]:
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
        known = [f.name for f in dataclasses.fields(TrainConfig)] + _argument_names()
        if unknown[0].startswith("--"):
            known += [field.name for field in dataclasses.fields(options)]
            _refuse_of_others(names[0])
            refuse_unknown(names, known, "flags")
        raise ConfigError(f"unexpected argument {unknown[0]!r}")
    return {name: value for name, value in vars(found).items() if value is not absent}


def _summary(report: Mapping[str, Any], as_json: bool) -> dict[str, Any]:
    """All of a report as JSON, or what a reader wants on a terminal."""
    if as_json:
        return dict(report)
    return {
        key: value
        for key, value in report.items()
        if (isinstance(value, str | int | float) and key not in ("clock", "scores_id"))
        or (key == "final_eval" and value is not None)
    } | _told(report["rollouts"])


def _told(rollouts: Mapping[str, Any] | None) -> dict[str, str]:
    """What the student wrote and what the teacher was asked, in words."""
    if rollouts is None:
        return {}
    scores = rollouts["scores"]
    seconds = {name: scores[f"seconds_{name}"] for name in ("teacher", "cache")}
    return {
        "student text": f"{rollouts.get('rollouts', 0):,} responses, "
        f"{rollouts.get('rollout_tokens', 0):,} tokens",
        "teacher tokens": f"{scores['teacher_tokens']:,} computed, "
        f"{scores['teacher_tokens_saved']:,} saved; {scores['hit_rate']:.0%} of "
        f"{scores['rows']:,} rows from the score cache",
        "seconds": ", ".join(
            f"{name} {value:.1f}" for name, value in {**rollouts["seconds"], **seconds}.items()
        ),
    }


OPTIONS = options_of(TrainConfig, skip=_NOT_FLAGS)
command = TrainCommand(
    "train",
    callback=run,
    params=[*OPTIONS, CONFIG_OPTION, JSON_OPTION],
    help=run.__doc__,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
