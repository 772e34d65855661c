"""A byte budget as a choice of attention targets.

In: bytes a token, the teacher's shape, the lengths of the documents. Out: the richest choice whose
estimated size fits. The order of choices is fixed, so the same data and budget give the same one.

The estimate is a model of what was measured on small real teachers (`benchmarks/bench_attention.py`
prints both): each halving of the step costs one bit a query or key and half a bit a level of a map;
levels take fewer bits the longer the row, where more of them are 0. What a teacher really takes
differs by some tens of per cent, mostly downwards, and is reported after the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cachekd.config import ATTENTION_STEPS, AttentionConfig
from cachekd.data.attention import MEAN, AttentionShape, AttentionSpec, attention_spec
from cachekd.errors import ConfigError
from cachekd.types import Int64

_ENTRY_BYTES = 1.3
_LOG_BYTES = 0.47
_MEAN_FACTOR = 1.25  # a mean of heads is smoother: fewer of its levels are 0
_REST_BYTES = 1.0
_BLOCK_BYTES = 36
_SHARES = (1 / 2, 1 / 4, 1 / 8)
_KEYS = (32, 16, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetChoice:
    """A choice and its estimated size in bytes a token."""

    spec: AttentionSpec
    bytes_per_token: float


def choose(
    config: AttentionConfig, shape: AttentionShape, lengths: Sequence[int] | Int64
) -> BudgetChoice:
    """The first choice that fits ``config.attention_budget``.

    Layers, kinds of row and the seed are the user's; heads, keys and the share of rows are chosen.

    Args:
        config: settings with ``attention`` auto.
        shape: layers and heads of the teacher.
        lengths: tokens of the documents.

    Raises:
        ConfigError: not even the smallest choice fits; names its size.
    """
    best = None
    for spec in _candidates(config, shape):
        best = BudgetChoice(spec=spec, bytes_per_token=estimate(spec, lengths))
        if best.bytes_per_token <= config.attention_budget:
            return best
    assert best is not None
    raise ConfigError(
        f"attention_budget: {config.attention_budget} bytes a token are not enough; the smallest "
        f"choice (one layer, mean of heads, {_KEYS[-1]} keys) takes about "
        f"{best.bytes_per_token:.0f}. Raise the budget, or set attention none"
    )


def _candidates(config: AttentionConfig, shape: AttentionShape) -> Iterator[AttentionSpec]:
    """From all heads and rows to the mean of heads and a few keys of one layer."""
    maps = attention_spec(replace(config, attention="maps", attention_budget=0), shape)
    maps = replace(maps, keys=0)
    qk = replace(maps, kind="qk", values="qk", step=ATTENTION_STEPS["qk"][0])
    if MEAN not in maps.heads:
        yield from (qk, maps)
        yield from (
            replace(spec, share=share, seed=config.attention_seed)
            for share in _SHARES
            for spec in (qk, maps)
        )
        maps = replace(maps, heads=(MEAN,))
    for count in sorted({len(maps.layers), 2, 1} & set(range(len(maps.layers) + 1)), reverse=True):
        fewer = replace(maps, layers=maps.layers[-count:])
        yield fewer
        yield from (replace(fewer, keys=keys) for keys in _KEYS)


def estimate(spec: AttentionSpec, lengths: Sequence[int] | Int64) -> float:
    """Bytes a token that a choice takes, over documents of these lengths."""
    tokens = np.asarray(lengths, dtype=np.float64)
    rows = (tokens - 1) * spec.share
    if spec.kind == "qk":
        heads = rows * len(spec.heads) + (tokens - 1) * len(spec.stored_key_heads)
        layer = (2.6 - np.log2(spec.step)) / 8 * spec.head_width * heads
    else:
        cells = np.minimum(tokens / 2, spec.keys) if spec.keys else tokens / 2
        level = _ENTRY_BYTES if spec.keys else _level_bytes(spec, cells)
        layer = len(spec.heads) * rows * (cells * level + _REST_BYTES)
    whole = len(spec.layers) * (layer + _BLOCK_BYTES)
    return float(whole.sum() / tokens.sum())


def _level_bytes(spec: AttentionSpec, cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bytes of a level in rows of so many keys on average."""
    short = -0.067 * np.log2(spec.step) if spec.values == "sqrt" else _LOG_BYTES
    if spec.heads == (MEAN,):
        short *= _MEAN_FACTOR
    return np.asarray(short * (64 / np.maximum(cells, 64)) ** 0.25, dtype=np.float64)


def at_most(spec: AttentionSpec, length: int) -> int:
    """Upper bound of the bytes that a document of this many tokens takes."""
    heads, keys = len(spec.heads), length * (length + 1) // 2
    if spec.kind == "qk":
        heads += len(spec.stored_key_heads)
        layer = 2 * spec.head_width * heads * (length + 1)
    elif spec.keys:
        layer = heads * length * (3 * min(spec.keys, length) + 1)
    else:
        layer = heads * (keys + length)
    # zstd stores what it cannot compress with 3 bytes for each block of 128 kB.
    return len(spec.layers) * (layer + layer // 4096 + 2 * _BLOCK_BYTES) + 64 + length // 8
