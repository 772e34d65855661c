"""Settings of ``cachekd precompute``."""

from __future__ import annotations

from dataclasses import dataclass

from cachekd.config._engine import EngineConfig, check_engine
from cachekd.config._fields import check_choices, option, required
from cachekd.config._generation import GenerationConfig, check_generation
from cachekd.config._inputs import DataConfig, ModelConfig, check_loading, check_vllm
from cachekd.config._locations import LocationConfig
from cachekd.config._targets import ATTENTION_STEPS, AttentionConfig, SelectionConfig, check_levels
from cachekd.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How the work is cut and when it ends; none of it changes what is stored beyond noise."""

    cache: str = required("Cache folder or URL.", group="Run")
    reuse: str | None = option(
        None,
        "Shared location, or a cache: records that caches of the same teacher and capture hold "
        "there are taken from them, and only the rest is scored.",
        group="Run",
    )
    batch_tokens: int = option(
        4096, "Token budget of a teacher batch (rows x padded length).", group="Run"
    )
    sort_window: int = option(
        1024, "Samples are sorted by length within windows of this many.", group="Run"
    )
    unit_tokens: int = option(
        262144,
        "Tokens of a unit: one shard, the grain of resuming; at least one batch.",
        group="Run",
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
class PrecomputeConfig(
    EngineConfig,
    RunConfig,
    LocationConfig,
    AttentionConfig,
    SelectionConfig,
    GenerationConfig,
    DataConfig,
    ModelConfig,
):
    """Settings of ``cachekd precompute``."""

    on_bad_targets: str = option(
        "fail",
        "What to do with rows that the teacher gives no distribution of (NaN, infinite): fail, or "
        "leave them out, recorded; they are never trained on.",
        choices=("fail", "skip"),
        group="Run",
    )

    @property
    def attention_kernel(self) -> str:
        """The attention implementation that the teacher is loaded with."""
        if self.backend == "vllm":
            return self.backend
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
        check_levels(self)
        if self.backend == "vllm":
            _check_vllm_targets(self)
        _check_attention(self)
        check_generation(self)
        if self.generate != "none" and self.on_long == "split":
            raise ConfigError(
                "on_long split: a response cannot be split before it is written; with generate set "
                "on_long to fail, truncate or skip"
            )
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
        check_loading(self)
        _check_reuse(self)
        check_engine(self)
        _check_split(self)


def _check_split(config: PrecomputeConfig) -> None:
    """A teacher that processes split among them only scores, where they put it."""
    if config.tp_plan and (config.device or config.device_map or config.adapter):
        raise ConfigError(
            "tp_plan places the teacher itself: leave out device, device_map and adapter"
        )
    if config.tp_plan and (config.attention, config.generate) != ("none", "none"):
        raise ConfigError(
            "tp_plan splits the teacher, which then only scores: leave out attention and generate"
        )


def _check_reuse(config: PrecomputeConfig) -> None:
    """Records of text that is still to be written are nobody's."""
    if config.reuse and config.generate != "none":
        raise ConfigError("reuse: responses are still to be written; leave reuse or generate out")


def _check_vllm_targets(config: PrecomputeConfig) -> None:
    """A vLLM engine gives lists of log-probabilities at temperature 1, and nothing else."""
    check_vllm(config)
    further = [t for t in config.temperatures if t != 1.0]
    if further:
        raise ConfigError(
            f"temperatures: backend vllm gives log-probabilities at temperature 1 alone, none at "
            f"{', '.join(map(str, further))}; set --temperatures 1, or use --backend hf"
        )
    if "sampled" in config.logits_selection:
        raise ConfigError(
            f"logits_selection: backend vllm gives exact heads, not {config.logits_selection}; "
            "choose top_k, top_p or full, or use --backend hf"
        )
    if config.attention != "none":
        raise ConfigError("attention: backend vllm gives none; use --backend hf")


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
