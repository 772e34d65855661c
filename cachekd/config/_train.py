"""Settings of ``cachekd train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cachekd.config._fields import check_choices, default_of, option, required
from cachekd.config._inputs import RowsConfig
from cachekd.config._live import LiveConfig
from cachekd.config._locations import LocationConfig
from cachekd.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LiveConfig, LocationConfig, RowsConfig):
    """Settings of ``cachekd train`` beside `transformers.TrainingArguments` and the objective's."""

    cache: tuple[str, ...] = option(
        (),
        "Cache to train from, PATH or NAME=PATH; may be repeated. With a live teacher --data alone "
        "will do.",
        group="Data",
    )
    data: tuple[str, ...] = option(
        (),
        "Train only the samples of these files (or datasets names), met with the caches by their "
        "tokens: as often as they stand there, with their roles, weights and domains. May be "
        "repeated.",
        group="Data",
    )
    on_missing: str = option(
        "fail",
        "What to do with samples that are not in the cache that should hold them.",
        choices=("fail", "skip"),
        group="Data",
    )
    on_long: str = option(
        "fail",
        "As at the capture: what was done with rows of --data that were too long.",
        choices=("fail", "truncate", "split", "skip"),
        group="Data",
    )
    on_bad: str = option(
        "fail",
        "What to do with rows of --data that cannot be used.",
        choices=("fail", "skip"),
        group="Data",
    )
    expert_domains: tuple[str, ...] = option(
        (),
        "Domain labels that learn from the cache called expert, for objectives that route; may be "
        "repeated. Default: every sample that has a label.",
        group="Data",
    )
    mix: Mapping[str, float] = option(
        {},
        "Times that the samples of a cache are seen in an epoch, as a=1,b=0.5. Default: 1.",
        group="Data",
    )
    mixture: Mapping[str, float] = option(
        {},
        "Learn at every position from a mixture of the caches' teachers, weighed as a=0.7,b=0.3.",
        group="Data",
    )
    mixture_tail: str = option(
        "flat",
        "How a teacher of a mixture spreads its tail over the tokens that it did not store.",
        choices=("flat", "unigram"),
        group="Data",
    )
    shuffle_shards: int = option(
        0,
        "0: the order is over all samples at once; n: shards come in a new order every epoch, and "
        "samples are shuffled within n of them at a time, so that a pass reads each shard once.",
        group="Data",
    )
    reduction: str = option(
        "token_mean",
        "Loss of a step: token_mean over all trained rows, or seq_mean, where each sample counts "
        "alike however many rows it has.",
        choices=("token_mean", "seq_mean"),
        group="Data",
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
        self.check_live()
        if self.data and not self.cache and not self.live:
            raise ConfigError(
                "teacher: --data without a cache is scored by a live teacher; give --teacher or "
                "--teacher-url, or a --cache"
            )
        if not self.cache and not (self.live and self.data):
            raise ConfigError(
                "cache: expected at least one cache; found none. Or give --data and a live teacher "
                "(--teacher or --teacher-url)"
            )
        if self.assistant_only_loss and self.completion_only_loss is not None:
            raise ConfigError("assistant_only_loss and completion_only_loss exclude each other")
        if self.mixture and self.mix:
            raise ConfigError("mixture and mix exclude each other: one set of samples, or several")
        if not self.data:
            self._refuse_without_data()
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

    def _refuse_without_data(self) -> None:
        """Settings of a data file say nothing without one."""
        names = {item.name for item in fields(RowsConfig)} | {"on_long", "on_bad"}
        for item in fields(self):
            if item.name in names and getattr(self, item.name) != default_of(item):
                raise ConfigError(f"{item.name}: it is about --data, which is not given")
