"""What is kept of a teacher: of its distributions, and of its attention.

These fields make the capture ids; the checks are those that need no other settings.
"""

from __future__ import annotations

from dataclasses import dataclass

from cachekd.config._fields import option
from cachekd.errors import ConfigError

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


def check_levels(config: SelectionConfig) -> None:
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


ATTENTION_STEPS = {"sqrt": (1 / 63, 1 / 255), "log": (1 / 4, 1 / 24), "qk": (0.03, 1 / 1024)}
"""Ways to round attention: the default distance of two levels, and the smallest."""
