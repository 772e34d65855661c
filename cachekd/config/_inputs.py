"""Who the teacher is, and which data is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cachekd.config._fields import option, required
from cachekd.errors import ConfigError

_DATA = "JSONL, JSON, CSV or Parquet file, or a datasets name; may be repeated."


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model a teacher is, and how it is loaded."""

    teacher: str = required("Teacher: a local folder or a hub id.", group="Teacher")
    backend: str = option("hf", "Teacher plugin that runs it.", group="Teacher")
    revision: str | None = option(None, "Revision of a hub teacher.", group="Teacher")
    tokenizer: str | None = option(
        None, "Tokenizer folder or hub id, if it is not the teacher's.", group="Teacher"
    )
    adapter: str | None = option(None, "peft adapter folder or hub id.", group="Teacher")
    dtype: str = option(
        "auto",
        "Weights dtype; auto takes the checkpoint's.",
        choices=("auto", "float32", "bfloat16", "float16"),
        group="Teacher",
    )
    device: str | None = option(
        None, "Device, such as cpu or cuda:0; default: cuda if there is one.", group="Teacher"
    )
    device_map: str | None = option(
        None, "accelerate device map, such as auto: spreads a large teacher.", group="Teacher"
    )
    max_memory: Mapping[str, str] = option(
        {},
        "With a device map: most memory of each device, such as 0=20GiB,cpu=60GiB; what does not "
        "fit is kept by the CPU or on disk.",
        group="Teacher",
    )
    offload_folder: str | None = option(
        None,
        "With a device map: folder on a fast disk for weights that no memory holds.",
        group="Teacher",
    )
    attn_implementation: str = option(
        "auto",
        "Attention of the teacher; part of the capture id. auto: eager where attention is "
        "captured, else sdpa.",
        choices=("auto", "sdpa", "eager", "flash_attention_2"),
        group="Teacher",
    )
    trust_remote_code: bool = option(
        False, "Run code that comes with the model. Off unless asked for.", group="Teacher"
    )
    load_in_8bit: bool = option(False, "bitsandbytes 8-bit weights.", group="Teacher")
    load_in_4bit: bool = option(False, "bitsandbytes 4-bit weights.", group="Teacher")
    bnb_4bit_quant_type: str = option(
        "nf4", "bitsandbytes 4-bit type.", choices=("nf4", "fp4"), group="Teacher"
    )
    bnb_4bit_compute_dtype: str = option(
        "bfloat16",
        "bitsandbytes compute dtype.",
        choices=("float32", "bfloat16", "float16"),
        group="Teacher",
    )
    bnb_4bit_use_double_quant: bool = option(
        False, "bitsandbytes nested quantisation.", group="Teacher"
    )
    tensor_parallel_size: int = option(
        1, "backend vllm: devices that the teacher is spread over.", group="Teacher"
    )
    gpu_memory_utilization: float = option(
        0.8,
        "backend vllm: share of a device's memory that the engine takes for weights and cache; "
        "log-probabilities need the rest.",
        group="Teacher",
    )


def check_loading(config: ModelConfig) -> None:
    """Refuse two ways to load a teacher at once.

    Raises:
        ConfigError: names both.
    """
    if config.load_in_4bit and config.load_in_8bit:
        raise ConfigError("load_in_4bit and load_in_8bit exclude each other; set one")
    if config.device and config.device_map:
        raise ConfigError("device and device_map exclude each other; set one")
    if (config.max_memory or config.offload_folder) and not config.device_map:
        raise ConfigError("max_memory and offload_folder belong to a device map: set device_map")


def check_vllm(config: ModelConfig) -> None:
    """Settings of a vLLM engine: values in range, and nothing that it leaves to other backends.

    Raises:
        ConfigError: names the setting, and what to do.
    """
    if config.tensor_parallel_size < 1:
        raise ConfigError(
            f"tensor_parallel_size: expected 1 or more; found {config.tensor_parallel_size}"
        )
    if not 0.0 < config.gpu_memory_utilization <= 1.0:
        raise ConfigError(
            f"gpu_memory_utilization: expected 0 < share <= 1; found "
            f"{config.gpu_memory_utilization}"
        )
    advice = {
        "adapter": (config.adapter, "merge it into the teacher (peft's merge_and_unload)"),
        "load_in_4bit": (config.load_in_4bit, "name a checkpoint that is quantised"),
        "load_in_8bit": (config.load_in_8bit, "name a checkpoint that is quantised"),
        "device": (config.device, "set CUDA_VISIBLE_DEVICES"),
        "device_map": (config.device_map, "set --tensor-parallel-size"),
        "attn_implementation": (
            config.attn_implementation != "auto",
            "leave it out: the engine has kernels of its own",
        ),
    }
    for name, (given, instead) in advice.items():
        if given:
            raise ConfigError(f"{name}: backend vllm does not take it; {instead}, or use hf")


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """Which rows are read, and which of their columns."""

    data: tuple[str, ...] = option((), _DATA, group="Data")
    split: str = option("train", "Split, for a datasets name.", group="Data")
    dataset_config: str | None = option(None, "Configuration, for a datasets name.", group="Data")
    columns: Mapping[str, str] = option(
        {},
        "Maps a column that cachekd knows to a column of the data: output=answer. "
        "Known: messages, conversations, prompt, completion, instruction, input, history, "
        "output, text, input_ids, labels, domain, weight.",
        group="Data",
    )
    domain_column: str | None = option(
        None, "Column with the domain label of a row (same as --columns domain=NAME).", group="Data"
    )
    max_samples: int | None = option(None, "Read only the first rows.", group="Data")


@dataclass(frozen=True, kw_only=True)
class DataConfig(RowsConfig):
    """Which rows are read, and how they become token ids."""

    data: tuple[str, ...] = required(_DATA, group="Data")
    prompt_template: str = option(
        "auto",
        "How instructions become text: the tokenizer's chat template, the Alpaca prompt, or plain "
        "concatenation. auto: chat if there is a template, else alpaca.",
        choices=("auto", "chat", "alpaca", "plain"),
        group="Data",
    )
    chat_template_path: str | None = option(
        None, "Jinja file used in place of the tokenizer's chat template.", group="Data"
    )
    add_eos: bool = option(
        True, "End text, prompt/completion and Alpaca rows with the EOS token.", group="Data"
    )
    max_length: int | None = option(
        None, "Longest sample in tokens; default: the teacher's context.", group="Data"
    )
    on_long: str = option(
        "fail",
        "What to do with longer samples.",
        choices=("fail", "truncate", "split", "skip"),
        group="Data",
    )
    on_bad: str = option(
        "fail", "What to do with rows that cannot be used.", choices=("fail", "skip"), group="Data"
    )
