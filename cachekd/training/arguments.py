"""`transformers.TrainingArguments` of a run: what the user set, and what follows from it.

In: a `TrainConfig`. Out: arguments for the Trainer, and what to resume from. Settings that cannot
work together are refused here, before a weight is loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachekd.errors import ConfigError
from cachekd.objectives import unknown

if TYPE_CHECKING:
    from cachekd.config import TrainConfig


def training_arguments(config: TrainConfig, *, own_progress: bool = False) -> Any:
    """Arguments of the Trainer; what the user gave wins over what follows from other settings.

    Args:
        config: settings of the run.
        own_progress: whether the caller shows progress, so that transformers need not.

    Raises:
        ConfigError: an unknown field, or settings that contradict each other.
    """
    import torch
    from transformers import TrainingArguments

    from cachekd.training.sharded import check_sharding

    given = {k: v for k, v in config.training.items() if k != "resume_from_checkpoint"}
    known = [item.name for item in dataclasses.fields(TrainingArguments)]
    for key in given:
        if key not in known:
            raise ConfigError(unknown(key, known, "a field of TrainingArguments"))
    if given.get("output_dir", config.output_dir) != config.output_dir:
        raise ConfigError("training: output_dir is set outside training; leave it out there")
    if str(given.get("fsdp")).lower() in ("true", "false"):  # a flag is text, to transformers too
        given["fsdp"] = str(given["fsdp"]).lower() == "true"
    if given.get("hub_token"):
        given["hub_token"] = _Secret(given["hub_token"])
    defaults = {
        "output_dir": config.output_dir,
        "report_to": "none",
        "disable_tqdm": own_progress,
        "logging_steps": 10,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        # A new process checks every shard in whole again: once a run, not once an epoch.
        "dataloader_persistent_workers": bool(given.get("dataloader_num_workers")),
        **_best_model(config, given),
    }
    if config.lora_r is not None:
        defaults["label_names"] = ["labels"]  # they cannot be read off the forward of a peft model
    try:
        arguments = TrainingArguments(**(defaults | given))
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"training: {error}") from error
    _check_reports(arguments.report_to)
    check_sharding(arguments)
    return arguments


def _check_reports(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is not installed, before anything is loaded."""
    from transformers.integrations import get_available_reporting_integrations

    installed = get_available_reporting_integrations()
    for name in names:
        if name not in installed:
            raise ConfigError(
                f"report_to: expected one of what is installed ({', '.join(installed) or 'none'}); "
                f"found {name}. Install it (pip install {name}), or leave it out"
            )


def resume_of(training: Mapping[str, Any]) -> str | bool:
    """Whether a run continues, or the folder that it continues from.

    Raises:
        ConfigError: there is no such folder.
    """
    value = training.get("resume_from_checkpoint")
    if value is None or isinstance(value, bool):
        return bool(value)
    if str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    if not Path(value).is_dir():
        raise ConfigError(f"resume_from_checkpoint: there is no folder {value}")
    return str(value)


class _Secret(str):
    """A token that works in this process, and is empty in every file that its owner is saved to."""

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, ("",)

    def __deepcopy__(self, memo: Any) -> _Secret:
        return self


def _best_model(config: TrainConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that evaluation and early stopping ask for.

    Raises:
        ConfigError: there is nothing to evaluate on, or no evaluation to stop by.
    """
    strategy = given.get("eval_strategy", "no")
    if strategy != "no" and config.eval_cache is None and not config.eval_data:
        raise ConfigError("training: eval_strategy needs an eval_cache or eval_data; give one")
    metric = str(given.get("metric_for_best_model", "loss")).removeprefix("eval_")
    if metric.startswith("text_") and (config.eval_cache is None or not config.eval_data):
        raise ConfigError(
            f"training: metric_for_best_model: eval_{metric} is there when both eval_cache and "
            f"eval_data are given; with one of them it is eval_{metric.removeprefix('text_')}"
        )
    # Of every figure that is logged here less is better; transformers assumes it of losses alone.
    figures = {"greater_is_better": False} if "metric_for_best_model" in given else {}
    if config.early_stopping_patience is None:
        return figures
    if strategy == "no":
        raise ConfigError(
            "early_stopping_patience: expected evaluations to stop by; found none. Set "
            "--eval-strategy steps (with --eval-steps) or epoch"
        )
    every = {"save_strategy": strategy}
    if strategy == "steps" and "save_steps" not in given:
        every["save_steps"] = given.get("eval_steps") or given.get("logging_steps", 500)
    return {
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "restore_callback_states_from_checkpoint": True,
        **every,
    }
