"""A low-rank adapter on a student, by peft: its base stays as it is and is not saved again.

In: a model and the LoRA settings. Out: a peft model whose adapter alone is trained. "LoRA: Low-Rank
Adaptation of Large Language Models" (Hu et al.), Eq. 3: h = W x + (alpha / r) B A x.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from cachekd.errors import ConfigError

if TYPE_CHECKING:
    from cachekd.config import TrainConfig


def adapted(model: Any, config: TrainConfig, arguments: Any) -> Any:
    """The model with a new adapter, which depends on the seed of the run.

    Args:
        model: the student, whole.
        config: settings of the run; ``lora_r`` is set.
        arguments: `transformers.TrainingArguments` of the run.

    Raises:
        ConfigError: peft is not installed, or refuses the settings for this model.
    """
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise ConfigError(
            f"lora_r: an adapter needs peft ({error}): pip install 'cachekd[peft]'"
        ) from error
    from transformers import set_seed

    settings = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_target_modules) or "all-linear",
        modules_to_save=list(config.lora_modules_to_save) or None,
    )
    set_seed(arguments.seed)
    try:
        peft_model = get_peft_model(model, settings)
    except ValueError as error:
        raise ConfigError(f"lora_target_modules: {error}") from error
    _name_base(peft_model, config)
    if arguments.activation_checkpointing:
        # The base is frozen: without a gradient at its input a recomputed layer would have none.
        peft_model.enable_input_require_grads()
    return peft_model


def _name_base(peft_model: Any, config: TrainConfig) -> None:
    """Write down the base as the user named it, not where a hub model lies on this machine."""
    local = os.path.isdir(os.path.expanduser(config.student))
    for settings in peft_model.peft_config.values():
        settings.base_model_name_or_path = (
            os.path.abspath(os.path.expanduser(config.student)) if local else config.student
        )
        settings.revision = None if local else config.revision
