"""Settings of ``cachekd train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cachekd.config._fields import check_choices, option, required
from cachekd.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of ``cachekd train`` beside `transformers.TrainingArguments` and the objective's."""

    cache: tuple[str, ...] = required(
        "Cache to train from, PATH or NAME=PATH; may be repeated.", group="Data"
    )
    student: str = required("Student: a local folder or a hub id.", group="Student")
    output_dir: str = required("Where the trained student is saved.", group="Student")
    objective: str = option("kd", "Objective plugin, or module:Class.", group="Objective")
    objective_options: Mapping[str, Any] = option(
        {}, "Options of the objective (flags and YAML keys of their own).", group="Objective"
    )
    objective_learning_rate: float = option(
        1e-3, "Learning rate of what the objective itself learns, if it does.", group="Objective"
    )
    revision: str | None = option(None, "Revision of a hub student.", group="Student")
    dtype: str = option(
        "float32",
        "Weights dtype of the student; auto takes the checkpoint's.",
        choices=("auto", "float32", "bfloat16", "float16"),
        group="Student",
    )
    attn_implementation: str | None = option(
        None, "Attention of the student; default: the model's.", group="Student"
    )
    trust_remote_code: bool = option(
        False, "Run code that comes with the model. Off unless asked for.", group="Student"
    )
    lora_r: int | None = option(
        None, "Rank of a LoRA adapter (peft); only it is trained and saved.", group="Student"
    )
    lora_alpha: int = option(16, "Scale of the adapter: alpha / r.", group="Student")
    lora_dropout: float = option(0.05, "Dropout before the adapter.", group="Student")
    lora_target_modules: tuple[str, ...] = option(
        (), "Module that gets an adapter; may be repeated. Default: all-linear.", group="Student"
    )
    lora_modules_to_save: tuple[str, ...] = option(
        (), "Module that is trained and saved whole beside; may be repeated.", group="Student"
    )
    eval_cache: str | None = option(
        None, "Cache for evaluation: held-out KL and CE.", group="Evaluation"
    )
    eval_data: tuple[str, ...] = option(
        (),
        "Held-out text for evaluation, without a teacher: CE. A file or name as --data of "
        "precompute; may be repeated.",
        group="Evaluation",
    )
    early_stopping_patience: int | None = option(
        None,
        "Stop after this many evaluations without a better figure, and keep the best student.",
        group="Evaluation",
    )
    early_stopping_threshold: float = option(
        0.0, "How much better a figure must be to count.", group="Evaluation"
    )
    max_length: int | None = option(
        None, "Cut samples to this many tokens (default: the student's context).", group="Data"
    )
    packing: bool = option(
        False, "Pack whole samples into rows of max_length; attention stays within.", group="Data"
    )
    completion_only_loss: bool | None = option(
        None,
        "Train on completions only (no: on all tokens). Default: completions where the data has "
        "prompts, else assistant turns, else all tokens.",
        group="Data",
    )
    assistant_only_loss: bool = option(
        False, "Train on every assistant turn and nothing else.", group="Data"
    )
    partial: bool = option(False, "Accept an unsealed cache, as far as it goes.", group="Data")
    training: Mapping[str, Any] = option(
        {}, "Any field of transformers.TrainingArguments.", group="Training"
    )

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.cache:
            raise ConfigError("cache: expected at least one cache; found none")
        if self.assistant_only_loss and self.completion_only_loss is not None:
            raise ConfigError("assistant_only_loss and completion_only_loss exclude each other")
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(f"max_length: expected at least 2; found {self.max_length}")
        self._check_lora()
        self._check_early_stopping()
        if not self.objective_learning_rate > 0:
            raise ConfigError(
                f"objective_learning_rate: expected above 0; found {self.objective_learning_rate}"
            )

    def _check_lora(self) -> None:
        if self.lora_r is None:
            for item in fields(self):
                if item.name.startswith("lora_") and getattr(self, item.name) != item.default:
                    raise ConfigError(f"{item.name} has no meaning without lora_r; set --lora-r")
            return
        if self.lora_r < 1:
            raise ConfigError(f"lora_r: expected at least 1; found {self.lora_r}")
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"lora_dropout: expected 0 up to 1; found {self.lora_dropout}")

    def _check_early_stopping(self) -> None:
        if self.early_stopping_patience is None:
            if self.early_stopping_threshold:
                raise ConfigError(
                    "early_stopping_threshold has no meaning without early_stopping_patience"
                )
            return
        if self.early_stopping_patience < 1:
            raise ConfigError(
                "early_stopping_patience: expected at least 1; found "
                f"{self.early_stopping_patience}"
            )
        if not self.early_stopping_threshold >= 0:
            raise ConfigError(
                "early_stopping_threshold: expected 0 or more; found "
                f"{self.early_stopping_threshold}"
            )
        if self.eval_cache is None and not self.eval_data:
            raise ConfigError(
                "early_stopping_patience: expected something to evaluate on; found none. Give "
                "--eval-cache or --eval-data"
            )
