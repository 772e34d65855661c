"""Loading a model of transformers as a run asks for it: where, in which numbers, with what adapter.

Comes in: settings and the facts of a teacher. Goes out: the model, and what its checkpoint lacks.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from cachekd.config import ModelConfig, PrecomputeConfig, ScoringConfig
from cachekd.errors import ConfigError, TeacherError
from cachekd.teachers import TeacherFacts
from cachekd.teachers._launched import own_number


def load_model(
    config: PrecomputeConfig | ScoringConfig, facts: TeacherFacts
) -> tuple[Any, list[str]]:
    """The model where it is to run, and the names of weights that its checkpoint lacks."""
    import torch
    from transformers import AutoModelForCausalLM

    device = config.device or own_device()
    placed = _placed(config)
    if isinstance(config, PrecomputeConfig) and config.tp_plan:
        from transformers.distributed import DistributedConfig

        placed = {"distributed_config": DistributedConfig(tp_plan=config.tp_plan)}
    model, loading = AutoModelForCausalLM.from_pretrained(
        facts.folder,
        dtype=getattr(torch, facts.dtype),
        attn_implementation=config.attention_kernel,
        trust_remote_code=config.trust_remote_code,
        output_loading_info=True,
        **placed,
        **_quantization(config),
    )
    if facts.adapter_folder is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, facts.adapter_folder)
    if not placed and not (config.load_in_4bit or config.load_in_8bit):
        model = model.to(device)
    return model, sorted(loading["missing_keys"])


def own_device() -> str:
    """Where a teacher is put by default: of several processes each has a GPU of its own.

    torchrun and Slurm number the processes of a machine. With fewer GPUs than processes, or where
    a process sees its own alone, they are gone through in turn.
    """
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    number = own_number()
    if number is None:
        return "cuda"
    place = number % torch.cuda.device_count()
    torch.cuda.set_device(place)  # where libraries put what they load themselves
    return f"cuda:{place}"


def input_device(model: Any) -> Any:
    """The device that a model takes its tokens on, also where its weights lie on disk."""
    import torch

    embedding = model.get_input_embeddings()
    device = embedding.weight.device
    if device.type != "meta":
        return device
    used = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    if used is None:
        raise TeacherError("the device map leaves the teacher's embedding nowhere; use another one")
    return torch.device("cuda", used) if isinstance(used, int) else torch.device(used)


def _placed(config: PrecomputeConfig | ScoringConfig) -> dict[str, Any]:
    """Where accelerate puts the parts of a large teacher."""
    if not config.device_map:
        return {}
    limits = {int(k) if k.isdecimal() else k: v for k, v in config.max_memory.items()}
    return {
        "device_map": config.device_map,
        **({"max_memory": limits} if limits else {}),
        **({"offload_folder": config.offload_folder} if config.offload_folder else {}),
    }


def no_room(config: PrecomputeConfig | ScoringConfig, error: MemoryError) -> TeacherError:
    """The error for a teacher that does not fit."""
    return TeacherError(
        f"teacher {config.teacher} cannot be loaded: out of memory: {error}. Nothing was written. "
        "Use a smaller --dtype, --load-in-8bit or --load-in-4bit, or --device-map auto"
    )


def check_extras(config: ModelConfig) -> None:
    """Refuse options whose library is not installed, before anything is loaded."""
    needs = {
        "peft": (bool(config.adapter), "peft", "peft"),
        "bitsandbytes": (config.load_in_4bit or config.load_in_8bit, "bitsandbytes", "bnb"),
        "accelerate": (bool(config.device_map), "accelerate", ""),
    }
    for asked, module, extra in needs.values():
        if asked and importlib.util.find_spec(module) is None:
            package = f"cachekd[{extra}]" if extra else module
            raise ConfigError(f"{module} is not installed; run: pip install '{package}'")


def _quantization(config: ModelConfig) -> dict[str, Any]:
    if not (config.load_in_4bit or config.load_in_8bit):
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_8bit=config.load_in_8bit,
        load_in_4bit=config.load_in_4bit,
        bnb_4bit_quant_type=config.bnb_4bit_quant_type,
        bnb_4bit_compute_dtype=getattr(torch, config.bnb_4bit_compute_dtype),
        bnb_4bit_use_double_quant=config.bnb_4bit_use_double_quant,
    )
    return {"quantization_config": settings}
