"""Quantised attention maps of one document and layer: H heads, R query rows, at most M keys.

Planes, in rows ordered by head and then query; n levels in all:

    rest    uint8 [H * R]   mass of the dropped keys: (value / 255)^2
    gaps    uint8 [2, n]    only where keys are limited: distance to the key before (of the first:
                            its position), low bytes and then high bytes
    levels  uint8 [n]       0: the key is dropped after all

Without a limit a row at position t has t + 1 levels, one for each causal key. With a limit m it has
min(m, t + 1): the first key (the sink of most models) and the most probable others.

Levels are uniform in sqrt(p), where the KL divergence of a rounding error is the same at every p
(p ~ (level * step)^2), or uniform in nats (p ~ exp(-(level - 1) * step), from 1 down to exp(-10)).
Decode law: the rest is authoritative, and kept keys are scaled to 1 - rest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cachekd.codecs._attention import LayerRows, check_weights, pack, ranges, row_sums, unpack
from cachekd.data.attention import AttentionSpec
from cachekd.errors import CorruptCache, TeacherError
from cachekd.types import Float32, Int32, Int64, UInt8

_REST = 255
_FLOOR_NATS = 10.0
_MOST_KEYS = 1 << 16


def encode_maps(spec: AttentionSpec, maps_HRL: Float32, rows: Int32) -> bytes:
    """Bytes of a layer.

    Args:
        spec: what is kept.
        maps_HRL: probabilities of H heads, R query rows, L-1 keys; 0 after a row's position.
        rows: positions of the query rows, int32 [R].

    Raises:
        TeacherError: the document is too long for a limited number of keys.
    """
    heads = maps_HRL.shape[0]
    counts = np.tile(_row_counts(spec, rows), heads)
    keys = _kept_keys(spec, maps_HRL, rows, counts)
    row_n = np.repeat(np.arange(len(counts)), counts)
    flat_NL = maps_HRL.reshape(len(counts), -1)
    probs = flat_NL[row_n, keys]
    levels = _levels(spec, probs)
    rest = 1.0 - row_sums(np.where(levels > 0, probs, 0), counts)
    dropped = np.tile(rows + 1, heads) - np.bincount(row_n[levels > 0], minlength=len(counts))
    # A dropped key is never impossible: its share of the rest is above 0.
    rest_levels = np.clip(np.rint(np.sqrt(np.maximum(rest, 0)) * _REST), 1, _REST)
    planes: list[NDArray[np.generic]] = [np.where(dropped > 0, rest_levels, 0).astype(np.uint8)]
    if spec.keys:
        planes.append(_gaps(keys, counts))
    return pack([*planes, levels])


def decode_maps(spec: AttentionSpec, data: bytes, rows: Int32, length: int) -> LayerRows:
    """A layer of the rows at these positions, among ``length`` keys.

    Raises:
        CorruptCache: the frame is damaged, or its size or values do not fit the shape.
    """
    heads = len(spec.heads)
    check_weights(rows, heads)
    kept_R = _row_counts(spec, rows)
    n = heads * int(kept_R.sum())
    size = heads * len(rows) + (3 if spec.keys else 1) * n
    raw = np.frombuffer(unpack(data, size), np.uint8)
    counts = np.tile(kept_R, heads)
    rest_levels, levels = raw[: len(counts)], raw[len(raw) - n :]
    limits = np.repeat(np.tile(rows, heads), counts)
    keys = _keys_from_gaps(raw[len(counts) : -n or None], counts) if spec.keys else ranges(counts)
    if n and bool((keys > limits).any()):
        raise CorruptCache("a decoded row has keys after its own position")
    keep = levels > 0
    row_n = np.repeat(np.arange(len(counts)), counts)[keep]
    kept = np.bincount(row_n, minlength=len(counts))
    dropped = np.tile(rows + 1, heads) - kept
    if bool(((dropped > 0) != (rest_levels > 0)).any()):
        raise CorruptCache("the rest of a decoded row does not fit its dropped keys")
    rest = (rest_levels / _REST) ** 2
    rest[kept == 0] = 1.0
    rough = _probabilities(spec, levels[keep])
    scale = (1.0 - rest) / np.maximum(row_sums(rough, kept), 1e-30)
    return LayerRows(
        counts=kept,
        keys=keys[keep].astype(np.int32),
        probs=(rough * scale[row_n]).astype(np.float32),
        rest=rest.reshape(heads, len(rows)).astype(np.float32),
    )


def _row_counts(spec: AttentionSpec, rows: Int32) -> Int64:
    causal = rows.astype(np.int64) + 1
    return np.minimum(causal, spec.keys) if spec.keys else causal


def _kept_keys(spec: AttentionSpec, maps_HRL: Float32, rows: Int32, counts: Int64) -> Int64:
    """Positions of the kept keys of each row, ascending, int64 [n]."""
    if not spec.keys:
        return ranges(counts)
    length = maps_HRL.shape[-1]
    if length > _MOST_KEYS:
        raise TeacherError(
            f"{length} keys: attention_keys needs documents of at most {_MOST_KEYS} tokens; set it "
            "to 0, or use --max-length"
        )
    ranked_HRL = np.where(np.arange(length) <= rows[:, None], maps_HRL, -1.0)
    ranked_HRL[..., 0] = 2.0
    most = min(spec.keys, length)
    best_HRK = np.argsort(-ranked_HRL, axis=-1, kind="stable")[..., :most]
    # What lies after the row's own position is pushed to the end, and cut off by the row's count.
    beyond_HRK = best_HRK > rows[:, None]
    best_HRK = np.sort(np.where(beyond_HRK, length, best_HRK), axis=-1)
    keep_NK = np.arange(most) < counts[:, None]
    return best_HRK.reshape(len(counts), most)[keep_NK].astype(np.int64)


def _gaps(keys: Int64, counts: Int64) -> UInt8:
    gaps = np.diff(keys, prepend=0)
    first = np.cumsum(counts) - counts
    gaps[first] = keys[first]
    return np.ascontiguousarray(gaps.astype("<u2").view(np.uint8).reshape(-1, 2).T)


def _keys_from_gaps(planes: UInt8, counts: Int64) -> Int64:
    low, high = planes.reshape(2, -1).astype(np.int64)
    gaps = low | (high << 8)
    first = np.cumsum(counts) - counts
    inner = np.ones(len(gaps), dtype=np.bool_)
    inner[first] = False
    if not (gaps[inner] > 0).all():
        raise CorruptCache("a decoded row names a key twice")
    total = np.cumsum(gaps)
    return np.asarray(total - np.repeat((total - gaps)[first], counts), dtype=np.int64)


def _levels(spec: AttentionSpec, probs: Float32) -> UInt8:
    if spec.values == "sqrt":
        return np.rint(np.sqrt(probs) / spec.step).clip(0, 255).astype(np.uint8)
    nats = -np.log(np.maximum(probs, 1e-30))
    return np.where(nats > _FLOOR_NATS, 0, 1 + np.rint(nats / spec.step)).astype(np.uint8)


def _probabilities(spec: AttentionSpec, levels: UInt8) -> NDArray[np.float64]:
    if spec.values == "sqrt":
        return np.asarray((levels * spec.step) ** 2, dtype=np.float64)
    return np.asarray(np.exp(-(levels - 1.0) * spec.step), dtype=np.float64)
