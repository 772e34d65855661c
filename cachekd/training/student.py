"""The student of a run: loaded from its folder, with an adapter to train where one is asked for.

In: settings and the folder of a model. Out: a model of transformers, or a peft model of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachekd.errors import ConfigError

if TYPE_CHECKING:
    from cachekd.config import TrainConfig


def refuse_adapter(folder: Path) -> None:
    """Refuse a student that is an adapter alone: training goes on from a whole model.

    Raises:
        ConfigError: says how to make a whole model of it.
    """
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ConfigError(
            f"student: {folder} is a peft adapter; expected a whole model. Merge it into its base "
            "(peft's merge_and_unload, then save_pretrained) and give that folder; an interrupted "
            "LoRA run continues with --resume-from-checkpoint true and the student it began with"
        )


def load_student(config: TrainConfig, folder: Path, arguments: Any) -> Any:
    """The model that is trained, on the CPU; the Trainer moves it.

    Args:
        config: settings of the run.
        folder: of the student.
        arguments: `transformers.TrainingArguments` of the run.

    Raises:
        ConfigError: it cannot be loaded, or an adapter cannot be put on it.
    """
    model = _load(config, folder)
    if config.lora_r is None:
        return model
    from cachekd.training.lora import adapted

    return adapted(model, config, arguments)


def _load(config: TrainConfig, folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    options = {"dtype": config.dtype, "trust_remote_code": config.trust_remote_code}
    if config.attn_implementation is not None:
        options["attn_implementation"] = config.attn_implementation
    try:
        return AutoModelForCausalLM.from_pretrained(folder, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ConfigError(
            f"student: {folder} cannot be loaded as a causal language model: {error}"
        ) from error
