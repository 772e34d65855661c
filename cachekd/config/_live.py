"""A live teacher: who scores what the student writes, and where its scores are kept."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from cachekd.config._fields import default_of, option
from cachekd.config._inputs import ModelConfig
from cachekd.config._targets import SelectionConfig
from cachekd.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ScoringConfig(SelectionConfig, ModelConfig):
    """A teacher that scores what it is given, without data or cache of its own."""

    attention: ClassVar[str] = "none"

    max_length: int | None = option(
        None, "Longest document in tokens; default: the teacher's context.", group="Teacher"
    )
    threads: int | None = option(None, "CPU threads of the teacher.", group="Teacher")

    @property
    def attention_kernel(self) -> str:
        """The attention implementation that the teacher is loaded with."""
        if self.backend == "vllm":
            return self.backend
        return "sdpa" if self.attn_implementation == "auto" else self.attn_implementation


@dataclass(frozen=True, kw_only=True)
class LiveConfig:
    """The live teacher of on-policy objectives, which train on text that the student writes."""

    teacher: str | None = option(
        None, "Live teacher in this process: a local folder or a hub id.", group="Live teacher"
    )
    teacher_url: str | None = option(
        None,
        "Live teacher elsewhere, in place of --teacher: http://host:port of cachekd serve-teacher "
        "or of a vLLM server.",
        group="Live teacher",
    )
    teacher_backend: str | None = option(
        None,
        "Plugin that runs or reaches it. Default: hf, or served with --teacher-url.",
        group="Live teacher",
    )
    teacher_token: str | None = option(
        None,
        "Token that the server asks for; better given as CACHEKD_TEACHER_TOKEN.",
        group="Live teacher",
    )
    teacher_timeout: float = option(
        60.0, "Seconds that one request to the server may take.", group="Live teacher"
    )
    teacher_patience: float = option(
        300.0,
        "Seconds that a server which does not answer is asked again, with growing pauses.",
        group="Live teacher",
    )
    teacher_revision: str | None = option(None, "Revision of a hub teacher.", group="Live teacher")
    teacher_adapter: str | None = option(None, "peft adapter of the teacher.", group="Live teacher")
    teacher_dtype: str = option(
        "auto",
        "Weights dtype of the teacher; auto takes the checkpoint's.",
        choices=("auto", "float32", "bfloat16", "float16"),
        group="Live teacher",
    )
    teacher_device: str | None = option(
        None, "Its device; default: the student's.", group="Live teacher"
    )
    teacher_device_map: str | None = option(
        None, "accelerate device map, such as auto.", group="Live teacher"
    )
    logits_top_k: int = option(
        64,
        "Entries of the teacher kept at each position; 0 keeps the whole vocabulary.",
        group="Live teacher",
    )
    score_batch_tokens: int = option(
        4096, "Token budget of a teacher batch (rows x padded length).", group="Live teacher"
    )
    score_cache: str | None = option(
        None,
        "Folder in which every scored sequence is kept; runs may share one. Default: scores in "
        "the output folder.",
        group="Live teacher",
    )
    lm_data: tuple[str, ...] = option(
        (),
        "Plain text that is trained on beside the student's own, for objectives that do; default: "
        "the data's responses. May be repeated.",
        group="Data",
    )
    keep_rollouts: str | None = option(
        None,
        "Cache that the student's text and its targets are written to when the run ends.",
        group="Live teacher",
    )
    prompt_template: str = option(
        "auto",
        "Without --cache: how instructions of --data become text, as at precompute.",
        choices=("auto", "chat", "alpaca", "plain"),
        group="Data",
    )
    add_eos: bool = option(
        True, "Without --cache: end responses of --data with the EOS token.", group="Data"
    )

    @property
    def live(self) -> bool:
        """Whether a live teacher is named."""
        return bool(self.teacher or self.teacher_url)

    def check_live(self) -> None:
        """Values in range, one teacher, and no idle setting.

        Raises:
            ConfigError: names the field.
        """
        if self.teacher and self.teacher_url:
            raise ConfigError("teacher and teacher_url exclude each other: one live teacher")
        if not self.live:
            for item in fields(LiveConfig):
                if getattr(self, item.name) != default_of(item):
                    raise ConfigError(
                        f"{item.name}: it is about a live teacher, and none is named; set "
                        "--teacher or --teacher-url"
                    )
            return
        for name in ("teacher_timeout", "teacher_patience", "score_batch_tokens"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected above 0; found {getattr(self, name)}")
        if self.logits_top_k < 0:
            raise ConfigError(f"logits_top_k: expected 0 or more; found {self.logits_top_k}")
