"""Settings of what measures before and after a capture: ``plan`` and ``verify --teacher``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from cachekd.config._fields import check_choices, option
from cachekd.config._inputs import DataConfig, ModelConfig
from cachekd.config._precompute import PrecomputeConfig
from cachekd.config._targets import SelectionConfig
from cachekd.errors import ConfigError


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
