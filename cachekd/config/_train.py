"""Settings of ``cachekd train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    eval_cache: str | None = option(None, "Cache for evaluation: held-out KL and CE.", group="Data")
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
