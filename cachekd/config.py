"""What a user can set: one frozen dataclass a command, importable without torch.

Flags, environment variables and YAML keys are generated from these fields (see `cli/options.py`);
``help`` in the metadata is the text of ``--help``, ``group`` the heading above it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from cachekd.errors import ConfigError


def option(default: Any, help: str, *, choices: tuple[str, ...] = (), group: str = "") -> Any:
    """A dataclass field with the text and choices that the command line shows."""
    metadata = {"help": help, "choices": choices, "group": group}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def required(help: str, *, group: str = "") -> Any:
    """A dataclass field without default."""
    return field(metadata={"help": help, "choices": (), "group": group})


def check_choices(config: Any) -> None:
    """Refuse values outside the choices of their field.

    Raises:
        ConfigError: names the field, its choices and the value found.
    """
    for item in fields(config):
        choices = item.metadata.get("choices", ())
        value = getattr(config, item.name)
        if choices and value is not None and value not in choices:
            raise ConfigError(f"{item.name}: expected one of {', '.join(choices)}; found {value!r}")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the text that identity digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def resolved(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON types, for run records and reports."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return plain


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


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which rows are read, and how they become token ids."""

    data: tuple[str, ...] = required(
        "JSONL, JSON, CSV or Parquet file, or a datasets name; may be repeated.", group="Data"
    )
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


LEVEL_STEPS = {"sqrt": 1 / 24, "log": 1 / 8}
"""Ways to round log-probabilities to levels, and the default distance of two levels."""


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """What is kept of each next-token distribution: the fields that make the capture id."""

    logits_selection: str = option(
        "top_p",
        "Which entries are kept. top_k: the k most probable; top_p: of these, up to mass p; "
        "top_k+sampled: those of at least probability tau exactly and an unbiased sample of the "
        "rest; sampled: unbiased draws only; full: the whole vocabulary.",
        choices=("top_k", "top_p", "top_k+sampled", "sampled", "full"),
        group="Selection",
    )
    logits_top_k: int = option(
        64, "Entries kept at most per position; 0 keeps the whole vocabulary.", group="Selection"
    )
    logits_top_p: float = option(
        0.99, "top_p: keep the most probable entries up to this mass (T = 1).", group="Selection"
    )
    logits_min_k: int = option(1, "top_p: entries kept at least per position.", group="Selection")
    logits_samples: int = option(50, "sampled: draws per position.", group="Selection")
    logits_tau: float = option(
        0.02,
        "top_k+sampled: tokens below this probability are sampled, and kept ones weigh tau.",
        group="Selection",
    )
    logits_seed: int = option(0, "Seed of sampled entries.", group="Selection")
    temperatures: tuple[float, ...] = option(
        (1.0, 2.0), "Temperatures whose exact log-normaliser is stored.", group="Selection"
    )
    rows: str = option(
        "all",
        "Positions captured: all, or only those whose next token is a response token.",
        choices=("all", "response"),
        group="Selection",
    )
    logits_values: str = option(
        "float16",
        "How log-probabilities are rounded. float16, float32: as they are; sqrt: levels uniform in "
        "the square root of the probability; log: levels uniform in nats.",
        choices=("float16", "float32", "sqrt", "log"),
        group="Selection",
    )
    logits_step: float | None = option(
        None,
        "Distance of two levels. Default: 1/24 for sqrt, 1/8 nat for log.",
        group="Selection",
    )


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """What is kept of the teacher's attention: the fields that make its capture id."""

    attention: str = option(
        "none",
        "Attention targets. maps: quantised probabilities; qk: queries and keys after RoPE, from "
        "which maps are recomputed (smaller for long documents); auto: what fits the budget.",
        choices=("none", "maps", "qk", "auto"),
        group="Attention",
    )
    attention_budget: int = option(
        0, "auto: bytes a token, over all layers and heads.", group="Attention"
    )
    attention_layers: tuple[int, ...] | None = option(
        None,
        "Layers, from 0. Default: four, evenly spaced, the last among them.",
        group="Attention",
    )
    attention_heads: str = option(
        "all", "all, mean (of all heads), or numbers with commas: 0,3.", group="Attention"
    )
    attention_rows: str = option(
        "all",
        "Query rows: all, or only those whose next token is a response token.",
        choices=("all", "response"),
        group="Attention",
    )
    attention_row_share: float = option(
        1.0, "Share of these rows that is kept, drawn without bias.", group="Attention"
    )
    attention_seed: int = option(0, "Seed of the rows that are drawn.", group="Attention")
    attention_keys: int = option(
        0,
        "maps: keys kept a row, the first key among them, with the mass of the rest; 0: all.",
        group="Attention",
    )
    attention_values: str = option(
        "sqrt",
        "maps: levels uniform in the square root of the probability, or in nats.",
        choices=("sqrt", "log"),
        group="Attention",
    )
    attention_step: float | None = option(
        None,
        "Distance of two levels. Default: 1/63 for sqrt, 1/4 nat for log; for qk 0.03 in units of "
        "the square root of a score.",
        group="Attention",
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How the work is cut and when it ends; none of it changes what is stored beyond noise."""

    cache: str = required("Cache folder or URL.", group="Run")
    batch_tokens: int = option(
        4096, "Token budget of a teacher batch (rows x padded length).", group="Run"
    )
    sort_window: int = option(
        1024, "Samples are sorted by length within windows of this many.", group="Run"
    )
    unit_tokens: int = option(
        262144, "Tokens of a unit: one shard, the grain of resuming.", group="Run"
    )
    codec: str = option(
        "packed", "Codec plugin that packs the targets; changes sizes, never values.", group="Run"
    )
    threads: int | None = option(
        None, "CPU threads of the teacher; frozen in the plan.", group="Run"
    )
    writers: int = option(
        1,
        "Processes that encode and write what the teacher has scored; 0: the teacher's own.",
        group="Run",
    )
    max_hours: float | None = option(
        None, "Stop in good order before this many hours (exit code 3).", group="Run"
    )
    dry_run: bool = option(False, "Print what would be done, and stop.", group="Run")
    seal: bool = option(True, "Seal the cache when everything is captured.", group="Run")
    check_disk: bool = option(True, "Refuse to start when the disk may be too small.", group="Run")


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig(RunConfig, AttentionConfig, SelectionConfig, DataConfig, ModelConfig):
    """Settings of ``cachekd precompute``."""

    @property
    def attention_kernel(self) -> str:
        """The attention implementation that the teacher is loaded with."""
        if self.attn_implementation != "auto":
            return self.attn_implementation
        return "sdpa" if self.attention == "none" else "eager"

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.data:
            raise ConfigError("data: expected at least one file or dataset name; found none")
        if self.logits_top_k < 0:
            raise ConfigError(f"logits_top_k: expected 0 or more; found {self.logits_top_k}")
        if not 0.0 < self.logits_top_p <= 1.0:
            raise ConfigError(f"logits_top_p: expected 0 < p <= 1; found {self.logits_top_p}")
        if self.logits_min_k < 1 or 0 < self.logits_top_k < self.logits_min_k:
            raise ConfigError(
                f"logits_min_k: expected 1 to logits_top_k ({self.logits_top_k}); "
                f"found {self.logits_min_k}"
            )
        _check_levels(self)
        _check_attention(self)
        if not self.temperatures or min(self.temperatures) <= 0:
            raise ConfigError(f"temperatures: expected values above 0; found {self.temperatures}")
        for name in ("batch_tokens", "sort_window", "unit_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1; found {getattr(self, name)}")
        if self.writers < 0:
            raise ConfigError(f"writers: expected 0 or more; found {self.writers}")
        for name in ("max_length", "max_samples", "threads"):
            value = getattr(self, name)
            if value is not None and value < (2 if name == "max_length" else 1):
                raise ConfigError(f"{name}: found {value}, which is too small")
        if self.load_in_4bit and self.load_in_8bit:
            raise ConfigError("load_in_4bit and load_in_8bit exclude each other; set one")
        if self.device and self.device_map:
            raise ConfigError("device and device_map exclude each other; set one")


def _check_levels(config: SelectionConfig) -> None:
    """Sampling and rounding: values in range, and a step only where there are levels."""
    if config.logits_samples < 1:
        raise ConfigError(f"logits_samples: expected at least 1; found {config.logits_samples}")
    if not 0.0 < config.logits_tau <= 1.0:
        raise ConfigError(f"logits_tau: expected 0 < tau <= 1; found {config.logits_tau}")
    step = config.logits_step
    if config.logits_selection == "top_k+sampled":
        _check_threshold(config)
    if step is not None and config.logits_values not in LEVEL_STEPS:
        raise ConfigError(
            f"logits_step: {config.logits_values} has no levels; leave the step out, or set "
            "logits_values to sqrt or log"
        )
    if step is not None and not 1 / 240 <= step <= 1.0:
        raise ConfigError(f"logits_step: expected 1/240 to 1; found {step}")


ATTENTION_STEPS = {"sqrt": (1 / 63, 1 / 255), "log": (1 / 4, 1 / 24), "qk": (0.03, 1 / 1024)}
"""Ways to round attention: the default distance of two levels, and the smallest."""


def _check_attention(config: PrecomputeConfig) -> None:
    """Attention targets: a kernel that can give them, values in range, and no idle setting."""
    asked = config.attention
    if asked == "none":
        if config.attention_budget:
            raise ConfigError("attention_budget: set attention to auto as well, or leave it out")
        return
    if config.attention_kernel != "eager":
        raise ConfigError(
            f"attn_implementation {config.attn_implementation} never makes attention maps, so "
            f"attention {asked} would store nothing; leave attn_implementation out, or set eager"
        )
    if (asked == "auto") != (config.attention_budget > 0):
        raise ConfigError(
            f"attention {asked} with attention_budget {config.attention_budget}: a budget in bytes "
            "a token belongs to attention auto, and auto needs one"
        )
    if not 0.0 < config.attention_row_share <= 1.0:
        raise ConfigError(
            f"attention_row_share: expected 0 < share <= 1; found {config.attention_row_share}"
        )
    if config.attention_keys < 0:
        raise ConfigError(f"attention_keys: expected 0 or more; found {config.attention_keys}")
    if asked == "qk" and (config.attention_heads == "mean" or config.attention_keys):
        raise ConfigError(
            "attention qk keeps queries and keys of whole heads; a mean of heads or a number of "
            "keys needs attention maps"
        )
    _check_attention_step(config)


def _check_attention_step(config: PrecomputeConfig) -> None:
    values = "qk" if config.attention == "qk" else config.attention_values
    least, step = ATTENTION_STEPS[values][1], config.attention_step
    if step is not None and not least <= step <= 1.0:
        raise ConfigError(f"attention_step: expected {least:.4g} to 1 for {values}; found {step}")


def _check_threshold(config: SelectionConfig) -> None:
    """All tokens of at least probability tau are in the head, so every drawn one weighs tau."""
    k, tau = config.logits_top_k, config.logits_tau
    if k and k * tau < 1:
        raise ConfigError(
            f"logits_tau: up to {int(1 / tau)} tokens can have probability {tau:g}, more than "
            f"logits_top_k = {k} keeps; expected logits_top_k >= 1 / logits_tau"
        )
    step = config.logits_step or LEVEL_STEPS.get(config.logits_values, 0.0)
    if config.logits_values == "sqrt" and tau < (step / 2) ** 2:
        raise ConfigError(
            f"logits_tau: {tau:g} is below {(step / 2) ** 2:g}, the smallest probability that "
            "levels of this step keep; use a smaller logits_step or float16 values"
        )


@dataclass(frozen=True, kw_only=True)
class PlanConfig(SelectionConfig, DataConfig, ModelConfig):
    """Settings of ``cachekd plan``: those of precompute without a cache, and what to judge by."""

    samples: int = option(200, "Documents that are measured.", group="Plan")
    seed: int = option(0, "Seed of the random sample.", group="Plan")
    max_kl: float | None = option(
        None,
        "Largest KL to the dense teacher in nats; default: 4 % of its mean entropy.",
        group="Plan",
    )
    max_bytes_per_token: float | None = option(None, "Most bytes stored for a token.", group="Plan")
    price_per_hour: float | None = option(None, "Price of an hour of the teacher.", group="Plan")
    price_per_gb_month: float | None = option(
        None, "Price of storing 1e9 bytes for a month.", group="Plan"
    )
    months: float = option(1.0, "Months that the cache is stored.", group="Plan")
    out: str | None = option(None, "HTML page to write, with the front as a plot.", group="Plan")
    batch_tokens: int = option(
        4096, "Token budget of a teacher batch (rows x padded length).", group="Plan"
    )
    threads: int | None = option(None, "CPU threads of the teacher.", group="Plan")

    def __post_init__(self) -> None:
        precompute_config(self)  # whatever precompute would refuse
        if self.samples < 2:
            raise ConfigError(
                f"samples: expected at least 2 (one half is learned from); found {self.samples}"
            )
        for name in ("max_kl", "max_bytes_per_token"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}: expected more than 0; found {value}")
        for name in ("price_per_hour", "price_per_gb_month", "months", "seed"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"{name}: expected 0 or more; found {value}")


@dataclass(frozen=True, kw_only=True)
class RecheckConfig(ModelConfig):
    """Settings of ``cachekd verify --teacher``."""

    samples: int = option(64, "Records that the teacher scores again.", group="Teacher")
    seed: int = option(0, "Seed of the random records.", group="Teacher")
    threads: int | None = option(None, "CPU threads of the teacher.", group="Teacher")

    def __post_init__(self) -> None:
        check_choices(self)
        if self.samples < 1:
            raise ConfigError(f"samples: expected at least 1; found {self.samples}")
        if self.seed < 0:
            raise ConfigError(f"seed: expected 0 or more; found {self.seed}")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads: found {self.threads}, which is too small")


def precompute_config(config: Any, **further: Any) -> PrecomputeConfig:
    """The settings of precompute that another command has too; it names no cache.

    Args:
        config: a `PlanConfig` or a `RecheckConfig`.
        further: fields that it does not have.

    Raises:
        ConfigError: precompute would refuse a value.
    """
    shared = {item.name for item in fields(PrecomputeConfig)} & {f.name for f in fields(config)}
    values = {name: getattr(config, name) for name in shared}
    return PrecomputeConfig(**{"cache": "", **values, **further})


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
