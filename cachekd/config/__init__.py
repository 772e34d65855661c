"""What a user can set: one frozen dataclass a command, importable without torch.

Flags, environment variables and YAML keys are generated from these fields (see `cli/options.py`);
``help`` in the metadata is the text of ``--help``, ``group`` the heading above it.
"""

from __future__ import annotations

from cachekd.config._benchmark import BenchmarkConfig
from cachekd.config._engine import EngineConfig, check_rank
from cachekd.config._evaluate import EvaluateConfig, Protocol
from cachekd.config._exchange import ExportConfig, ImportConfig
from cachekd.config._fields import canonical_json, check_choices, option, required, resolved
from cachekd.config._inputs import DataConfig, ModelConfig, RowsConfig, check_vllm
from cachekd.config._live import LiveConfig, ScoringConfig
from cachekd.config._locations import LOCAL_CACHE_SIZE, LocationConfig, bytes_of
from cachekd.config._looks import PlanConfig, RecheckConfig, precompute_config
from cachekd.config._precompute import PrecomputeConfig, RunConfig
from cachekd.config._report import ReportConfig
from cachekd.config._serve import ServeConfig
from cachekd.config._share import GcConfig, LsConfig, PullConfig, PushConfig
from cachekd.config._targets import ATTENTION_STEPS, LEVEL_STEPS, AttentionConfig, SelectionConfig
from cachekd.config._train import TrainConfig

__all__ = [
    "ATTENTION_STEPS",
    "AttentionConfig",
    "BenchmarkConfig",
    "DataConfig",
    "EngineConfig",
    "EvaluateConfig",
    "GcConfig",
    "ExportConfig",
    "ImportConfig",
    "LEVEL_STEPS",
    "LOCAL_CACHE_SIZE",
    "LiveConfig",
    "LocationConfig",
    "LsConfig",
    "ModelConfig",
    "PlanConfig",
    "PrecomputeConfig",
    "Protocol",
    "PullConfig",
    "PushConfig",
    "RecheckConfig",
    "ReportConfig",
    "RowsConfig",
    "RunConfig",
    "ScoringConfig",
    "SelectionConfig",
    "ServeConfig",
    "TrainConfig",
    "bytes_of",
    "canonical_json",
    "check_choices",
    "check_rank",
    "check_vllm",
    "option",
    "precompute_config",
    "required",
    "resolved",
]
