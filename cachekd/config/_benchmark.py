"""Settings of ``cachekd benchmark``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cachekd.config._fields import option, required
from cachekd.config._inputs import DataConfig, ModelConfig
from cachekd.config._looks import precompute_config
from cachekd.config._targets import SelectionConfig
from cachekd.errors import ConfigError

_PRICES = ("price_per_hour", "price_per_hour_student", "price_per_gb_month", "months")
_FIXED = {
    "output_dir": "nothing is kept",
    "max_steps": "set --steps",
    "num_train_epochs": "set --epochs, which are calculated and not run",
    "save_strategy": "nothing is kept",
    "eval_strategy": "evaluation is not measured",
    "seed": "set --seed",
}


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(SelectionConfig, DataConfig, ModelConfig):
    """Settings of ``cachekd benchmark``: those of a capture, a student, prices, what is planned."""

    student: str = required("Student: a local folder or a hub id.", group="Student")
    student_dtype: str = option(
        "float32",
        "Weights dtype of the student; auto takes the checkpoint's.",
        choices=("auto", "float32", "bfloat16", "float16"),
        group="Student",
    )
    lora_r: int | None = option(
        None,
        "Rank of a LoRA adapter (peft) that is trained in place of the student.",
        group="Student",
    )
    objective: str = option(
        "kd", "Objective that trains from the cache; an off-policy one.", group="Objective"
    )
    objective_options: Mapping[str, Any] = option(
        {}, "Options of the objective (flags and YAML keys of their own).", group="Objective"
    )
    training: Mapping[str, Any] = option(
        {},
        "Any field of transformers.TrainingArguments, such as the batch size.",
        group="Objective",
    )
    samples: int = option(256, "Documents that are captured and trained on.", group="Measurement")
    steps: int = option(20, "Steps of each side that are measured.", group="Measurement")
    discard: int = option(
        3,
        "Steps of each side before these, which are not counted: in the first things are set up.",
        group="Measurement",
    )
    seed: int = option(0, "Seed of the random sample and of its order.", group="Measurement")
    batch_tokens: int = option(
        4096, "Token budget of a teacher batch (rows x padded length).", group="Measurement"
    )
    threads: int | None = option(
        None, "CPU threads of every side; default: what torch takes.", group="Measurement"
    )
    epochs: float = option(3.0, "Epochs that are planned.", group="Plan")
    students: int = option(
        1, "Students that are planned: sizes, seeds and ablations on this data.", group="Plan"
    )
    teacher_changes: float | None = option(
        None,
        "The teacher is trained anew every so many epochs, and what was cached of it is stale.",
        group="Plan",
    )
    price_per_hour: float | None = option(
        None, "Price of an hour of the machine that holds the teacher.", group="Prices"
    )
    price_per_hour_student: float | None = option(
        None,
        "Price of an hour of the machine that trains from the cache; default: the same.",
        group="Prices",
    )
    price_per_gb_month: float | None = option(
        None, "Price of storing 1e9 bytes for a month.", group="Prices"
    )
    months: float = option(1.0, "Months that the cache is stored.", group="Prices")
    out: str | None = option(None, "HTML page to write.", group="Output")
    plots_dir: str | None = option(None, "Folder for a PNG of each plot.", group="Output")

    def __post_init__(self) -> None:
        precompute_config(self)  # whatever precompute would refuse
        if self.backend != "hf":
            raise ConfigError(
                f"backend: the live side runs the teacher within each step: expected hf; found "
                f"{self.backend}"
            )
        least = {"samples": 1, "steps": 1, "discard": 1, "students": 1, "seed": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ConfigError(f"{name}: expected at least {bound}; found {getattr(self, name)}")
        for name in ("epochs", "teacher_changes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}: expected more than 0; found {value}")
        for name in _PRICES:
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"{name}: expected a number of 0 or more; found {value}")
        for name, why in _FIXED.items():
            if name in self.training:
                raise ConfigError(f"training: {name} is the benchmark's own: {why}")
