"""From the settings of a run to what a `CacheDataset` is told: no torch is imported before that.

In: `TrainConfig`, what the objective needs, opened caches, the student's folder. Out: the keyword
arguments of `CacheDataset` that say which samples it gives and in what order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachekd.config import TrainConfig
from cachekd.errors import ConfigError

if TYPE_CHECKING:
    from cachekd.objectives import Needs
    from cachekd.store.reader import Cache


def dataset_options(
    config: TrainConfig, needs: Needs, caches: Sequence[Cache], student: Path
) -> dict[str, Any]:
    """Routing, mixture, data file and order, as the settings and the objective ask for them.

    Raises:
        ConfigError: domains are named, and the objective does not route.
        DataError, MismatchError: see `cachekd.training.join.read_samples_of`.
    """
    from cachekd.training.join import read_samples_of
    from cachekd.training.mixture import Mixture
    from cachekd.training.order import Order

    if config.expert_domains and not needs.routed:
        raise ConfigError(
            f"expert_domains: the objective {config.objective} does not route samples by domain; "
            "leave the flag out, or choose an objective that does (dae)"
        )
    mixture = Mixture(weights=config.mixture, tail=config.mixture_tail) if config.mixture else None
    return {
        "route": config.expert_domains if needs.routed else None,
        "mixture": mixture,
        "data": read_samples_of(config, caches, student) if config.data else None,
        "on_missing": config.on_missing,
        "order": Order(mix=config.mix, shuffle_shards=config.shuffle_shards),
    }
