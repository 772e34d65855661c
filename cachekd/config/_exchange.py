"""Settings of ``cachekd import`` and ``cachekd export``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cachekd.config._fields import check_choices, option, required
from cachekd.errors import ConfigError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB)", re.IGNORECASE)
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What is read, whose it is said to be, and what becomes of rows that cannot be used."""

    source: tuple[str, ...] = required(
        "Files or folders, local or any fsspec URL; in this order.", group="Import"
    )
    format: str = required(
        "Format of the source: distillkit, axolotl, openai, megatron, arrow.", group="Import"
    )
    cache: str = required("Cache folder or URL; one of the same import goes on.", group="Import")
    teacher: str = required(
        "Name of the teacher. It is asserted: nothing in these formats proves it.",
        group="Identity",
    )
    tokenizer: str = required(
        "Tokenizer of the token ids: folder or hub id; students must have it.", group="Identity"
    )
    revision: str | None = option(None, "Revision of the teacher, if known.", group="Identity")
    dtype: str = option("unknown", "Dtype that the teacher ran in, if known.", group="Identity")
    compression_config: str | None = option(
        None,
        "distillkit: YAML with the compressor's settings; default compression_config.yaml beside "
        "the data.",
        group="Format",
    )
    tokens: tuple[str, ...] = option(
        (),
        "megatron: files with the input_ids of the samples in training order, which tars lack.",
        group="Format",
    )
    values: str = option(
        "auto",
        "What the values are: log-probabilities over the whole vocabulary, log-probabilities of "
        "the entries alone, or logits; auto: as the format has it, or as the first rows show.",
        choices=("auto", "logprobs", "renormalised", "logits"),
        group="Format",
    )
    next_logprob: str = option(
        "auto",
        "Log-probability of the next token: auto: as told, where the format or all of the first "
        "rows tell it, so that a row without is bad; bound: where it is not told, a bound.",
        choices=("auto", "bound"),
        group="Format",
    )
    shift: int | None = option(
        None,
        "Tokens by which rows stand later than the format says; default 0, refused where the "
        "first rows speak for another.",
        group="Format",
    )
    rows: str = option(
        "auto",
        "Rows that documents have: all, or at least those that are trained (response); auto: as "
        "the first documents have them.",
        choices=("auto", "all", "response"),
        group="Rows",
    )
    on_bad: str = option(
        "fail",
        "What to do with documents and rows that cannot be used: fail, or leave them out, counted "
        "by reason.",
        choices=("fail", "skip"),
        group="Rows",
    )
    rescale: bool = option(
        False,
        "Divide rows of mass above 1 (approximations of DistillKit) by their mass, counted.",
        group="Rows",
    )
    mass_tolerance: float = option(
        0.005, "How far the mass of a row may be above 1, or beside it.", group="Rows"
    )
    logits_values: str = option(
        "float32", "How values are stored.", choices=("float16", "float32"), group="Store"
    )
    codec: str = option("packed", "Codec plugin that packs the targets.", group="Store")
    unit_tokens: int = option(262144, "Tokens of a shard.", group="Store")

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.source:
            raise ConfigError("source: expected at least one file or folder; found none")
        if not (self.teacher.strip() and self.tokenizer.strip()):
            raise ConfigError("teacher and tokenizer: expected names; found an empty one")
        if not 0 <= self.mass_tolerance <= 0.02:
            raise ConfigError(
                f"mass_tolerance: expected 0 to 0.02, what verify lets pass; found "
                f"{self.mass_tolerance}"
            )
        if self.unit_tokens < 1:
            raise ConfigError(f"unit_tokens: expected at least 1; found {self.unit_tokens}")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What is written, and in which form."""

    cache: str = required("A sealed cache.", group="Export")
    format: str = required("Format to write: axolotl, distillkit, arrow.", group="Export")
    out: str = required("Folder to make; there must be nothing in it.", group="Export")
    shard_size: str = option("500MB", "Size of a file, such as 500MB.", group="Export")
    k: int | None = option(
        None, "Most entries of a row; default: as many as the longest row has.", group="Format"
    )
    values: str = option(
        "logprobs",
        "axolotl: log-probabilities as the teacher gave them, or renormalised over the entries, "
        "which kd_normalize_topk (its default) expects.",
        choices=("logprobs", "renormalised"),
        group="Format",
    )
    exact_k: int | None = option(
        None,
        "distillkit: entries stored exactly, the others as a polynomial; default: all.",
        group="Format",
    )
    exact_dtype: str = option(
        "float32",
        "distillkit: dtype of the exact entries.",
        choices=("float32", "float16", "bfloat16"),
        group="Format",
    )

    def __post_init__(self) -> None:
        check_choices(self)
        self.shard_bytes()
        for name in ("k", "exact_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: expected at least 1; found {value}")

    def shard_bytes(self) -> int:
        """Bytes that ``shard_size`` says.

        Raises:
            ConfigError: it is no size.
        """
        match = _SIZE.fullmatch(self.shard_size.strip())
        if match is None or float(match[1]) <= 0:
            raise ConfigError(
                f"shard_size: expected a size such as 500MB or 2GB; found {self.shard_size!r}"
            )
        return max(1, int(float(match[1]) * _UNITS[match[2].upper()]))
