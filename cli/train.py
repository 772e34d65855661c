"""``cachekd train``: train a student from caches, or on its own text with a live teacher.

Three sets of flags meet here: `TrainConfig`, the options of the chosen objective, and every field
of ``transformers.TrainingArguments``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import click

from cachekd.config import TrainConfig
from cachekd.plugins import find

from .options import CONFIG_OPTION, JSON_OPTION, options_of, read_yaml
from .output import emit
from .progress import TrainProgress
from .training_flags import NOT_FLAGS, TrainingCommand, settings


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
    found = settings(TrainConfig, given, from_yaml, objective.Options, ctx.args, config or "")
    from cachekd.training.run import train

    bar = TrainProgress("train")
    try:
        report = train(found, progress=bar)
    finally:
        bar.close()
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        emit(_summary(report, as_json), as_json=as_json)


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


OPTIONS = options_of(TrainConfig, skip=NOT_FLAGS)
command = TrainingCommand(
    "train",
    callback=run,
    params=[*OPTIONS, CONFIG_OPTION, JSON_OPTION],
    help=run.__doc__,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
