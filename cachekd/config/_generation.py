"""Whether the teacher writes the responses, and how: the words of Hugging Face, with a prefix.

None of it is in a capture id: a sequence that the teacher wrote is a sequence like any other.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from cachekd.config._fields import option
from cachekd.errors import ConfigError

_SAMPLING = (
    "generation_temperature",
    "generation_top_p",
    "generation_top_k",
    "generation_seed",
    "generation_samples",
)


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How the teacher writes the responses that take the place of those of the data."""

    generate: str = option(
        "none",
        "The teacher writes the response to each prompt, in place of that of the data: greedy, or "
        "sample.",
        choices=("none", "greedy", "sample"),
        group="Generation",
    )
    max_new_tokens: int = option(
        256, "Most tokens of a response, its end token among them.", group="Generation"
    )
    generation_temperature: float = option(
        1.0, "sample: temperature of the distribution drawn from.", group="Generation"
    )
    generation_top_p: float = option(
        1.0, "sample: draw from the most probable tokens up to this mass.", group="Generation"
    )
    generation_top_k: int = option(
        0, "sample: draw from the k most probable tokens; 0: from all.", group="Generation"
    )
    generation_seed: int = option(0, "sample: seed of the draws.", group="Generation")
    generation_samples: int = option(1, "sample: responses to each prompt.", group="Generation")


def check_generation(config: GenerationConfig) -> None:
    """Values in range, and none that would do nothing.

    Raises:
        ConfigError: names the field, what was expected and what was found.
    """
    default = {item.name: item.default for item in fields(GenerationConfig)}
    used = {"none": (), "greedy": ("max_new_tokens",)}.get(config.generate, tuple(default))
    for name in default:
        if name not in (*used, "generate") and getattr(config, name) != default[name]:
            wanted = "sample" if name in _SAMPLING else "greedy or sample"
            raise ConfigError(
                f"{name}: found {getattr(config, name)} with generate {config.generate}, where it "
                f"does nothing; set generate to {wanted}, or leave it out"
            )
    for name, least in (
        ("max_new_tokens", 1),
        ("generation_top_k", 0),
        ("generation_seed", 0),
        ("generation_samples", 1),
    ):
        if getattr(config, name) < least:
            raise ConfigError(f"{name}: expected {least} or more; found {getattr(config, name)}")
    if config.generation_seed >= 1 << 63:
        raise ConfigError(
            f"generation_seed: expected less than 2^63; found {config.generation_seed}"
        )
    if not 0.0 < config.generation_temperature < float("inf"):
        raise ConfigError(
            f"generation_temperature: expected more than 0; found {config.generation_temperature}. "
            "For the most probable tokens set generate to greedy"
        )
    if not 0.0 < config.generation_top_p <= 1.0:
        raise ConfigError(f"generation_top_p: expected 0 < p <= 1; found {config.generation_top_p}")
