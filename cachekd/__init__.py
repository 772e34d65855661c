"""cachekd: offline two-stage logit caching for knowledge distillation of language models.

Names are loaded on first use: ``import cachekd`` and opening a cache need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cachekd.capture import precompute
    from cachekd.config import (
        BenchmarkConfig,
        EvaluateConfig,
        ExportConfig,
        ImportConfig,
        PrecomputeConfig,
        ReportConfig,
        TrainConfig,
    )
    from cachekd.costs.comparison import benchmark
    from cachekd.evaluation.heldout import heldout_kl
    from cachekd.evaluation.run import evaluate
    from cachekd.exchange._export import export_cache
    from cachekd.exchange._import import import_cache
    from cachekd.losses.sparse import sparse_divergence
    from cachekd.overview import make_report
    from cachekd.store.reader import Cache, open_cache
    from cachekd.training.collate import Collator
    from cachekd.training.loader import CacheDataset
    from cachekd.training.order import EpochSampler
    from cachekd.training.run import train
    from cachekd.training.trainer import DistillTrainer
    from cachekd.training.workers import named_workers

__version__ = "0.1.0"

_HOMES = {
    "BenchmarkConfig": "cachekd.config",
    "Cache": "cachekd.store.reader",
    "CacheDataset": "cachekd.training.loader",
    "Collator": "cachekd.training.collate",
    "DistillTrainer": "cachekd.training.trainer",
    "EpochSampler": "cachekd.training.order",
    "EvaluateConfig": "cachekd.config",
    "ExportConfig": "cachekd.config",
    "ImportConfig": "cachekd.config",
    "PrecomputeConfig": "cachekd.config",
    "ReportConfig": "cachekd.config",
    "TrainConfig": "cachekd.config",
    "benchmark": "cachekd.costs.comparison",
    "evaluate": "cachekd.evaluation.run",
    "export_cache": "cachekd.exchange._export",
    "heldout_kl": "cachekd.evaluation.heldout",
    "import_cache": "cachekd.exchange._import",
    "make_report": "cachekd.overview",
    "named_workers": "cachekd.training.workers",
    "open_cache": "cachekd.store.reader",
    "precompute": "cachekd.capture",
    "sparse_divergence": "cachekd.losses.sparse",
    "train": "cachekd.training.run",
}

__all__ = [
    "BenchmarkConfig",
    "Cache",
    "CacheDataset",
    "Collator",
    "DistillTrainer",
    "EpochSampler",
    "EvaluateConfig",
    "ExportConfig",
    "ImportConfig",
    "PrecomputeConfig",
    "ReportConfig",
    "TrainConfig",
    "benchmark",
    "evaluate",
    "export_cache",
    "heldout_kl",
    "import_cache",
    "make_report",
    "named_workers",
    "open_cache",
    "precompute",
    "sparse_divergence",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cachekd' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
