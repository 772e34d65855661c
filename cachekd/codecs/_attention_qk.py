"""Queries and keys after RoPE, of one document and layer: R query rows, L-1 keys, G key heads.

Scores are ``q . k`` (the model's scaling is folded into both), and softmax over a row's keys does
not change when one vector is added to all keys of a head. So keys are centred, each dimension is
scaled so that queries and keys have one spread (``q * b`` and ``k / b`` have the same product), and
both are rounded to multiples of one step. Neither centre nor scale has to be stored. Heads that
share a key head (GQA) store it once.

Planes, for each of the H query heads and then the G key heads, dimension by dimension:

    base  int16 [(H + G) * D]                    rounded mean of the dimension, in steps
    low   uint8 [H * D * R + G * D * (L-1)]      zigzag of level - base, low bytes
    high  uint8 the same                         high bytes: 0 nearly everywhere

Decode law: scores are products of levels in float32, times step^2; maps are their softmax in
float32 over keys 0..t, at least the smallest normal float32: no causal key is impossible. All of
them are kept, and the rest is 0.
"""

from __future__ import annotations

import numpy as np

from cachekd.codecs._attention import LayerRows, check_weights, pack, ranges, unpack
from cachekd.data.attention import AttentionSpec
from cachekd.errors import CorruptCache, TeacherError
from cachekd.types import Float32, Int32

_MOST = 1 << 14  # so that a difference of two takes 16 bits with its sign


def encode_qk(spec: AttentionSpec, q_HRD: Float32, k_GLD: Float32) -> bytes:
    """Bytes of a layer.

    Args:
        spec: what is kept.
        q_HRD: queries of the stored heads and rows, with the root of the scaling folded in.
        k_GLD: keys of the stored key heads, all L-1 positions, scaled alike.

    Raises:
        TeacherError: a value is too large for the step.
    """
    groups = np.array(spec.groups)
    k_GLD = k_GLD - k_GLD.mean(axis=1, keepdims=True)
    power_q_GD = np.stack(
        [np.square(q_HRD[groups == g]).mean(axis=(0, 1)) for g in range(len(k_GLD))]
    )
    power_k_GD = np.square(k_GLD).mean(axis=1)
    balance_GD = ((power_k_GD + 1e-12) / (power_q_GD + 1e-12)) ** 0.25
    sides = (q_HRD * balance_GD[groups][:, None], k_GLD / balance_GD[:, None])
    bases, levels = [], []
    for side in sides:
        level = np.rint(side / spec.step)
        if not (np.abs(level) < _MOST).all():
            raise TeacherError(
                f"a query or key is beyond {_MOST} steps of {spec.step}, or not finite; raise "
                "attention_step, or keep maps"
            )
        level = level.astype(np.int32)
        base = np.rint(level.mean(axis=1)).astype(np.int32)
        delta = (level - base[:, None]).transpose(0, 2, 1)
        bases.append(base.astype("<i2").ravel())
        levels.append(((delta << 1) ^ (delta >> 31)).astype("<u4").ravel())
    zigzag = np.concatenate(levels)
    planes = [
        np.concatenate(bases),
        (zigzag & 255).astype(np.uint8),
        (zigzag >> 8).astype(np.uint8),
    ]
    return pack(planes)


def decode_qk(spec: AttentionSpec, data: bytes, rows: Int32, length: int) -> LayerRows:
    """Maps of the rows at these positions, recomputed from queries and keys.

    Raises:
        CorruptCache: the frame is damaged or its size does not fit the shape.
    """
    heads, key_heads, width = len(spec.heads), len(spec.stored_key_heads), spec.head_width
    check_weights(rows, heads)
    bases = (heads + key_heads) * width
    queries = heads * width * len(rows)
    cells = queries + key_heads * width * length
    raw = unpack(data, 2 * bases + 2 * cells)
    base = np.frombuffer(raw, "<i2", bases).astype(np.int32)
    low, high = np.frombuffer(raw, np.uint8, 2 * cells, 2 * bases).reshape(2, -1).astype(np.int32)
    zigzag = low | (high << 8)
    delta = (zigzag >> 1) ^ -(zigzag & 1)
    q_HDR = delta[:queries].reshape(heads, width, len(rows))
    k_GDL = delta[queries:].reshape(key_heads, width, length)
    q_HDR = q_HDR + base[: heads * width].reshape(heads, width, 1)
    k_GDL = k_GDL + base[heads * width :].reshape(key_heads, width, 1)
    return _softmax(spec, q_HDR.astype(np.float32), k_GDL.astype(np.float32), rows)


def _softmax(spec: AttentionSpec, q_HDR: Float32, k_GDL: Float32, rows: Int32) -> LayerRows:
    heads, length = len(q_HDR), k_GDL.shape[-1]
    causal_RL = np.arange(length) <= rows[:, None]
    probs = []
    for head, group in enumerate(spec.groups):  # one head at a time: R x L-1 scores
        scores_RL = (q_HDR[head].T @ k_GDL[group]) * np.float32(spec.step**2)
        scores_RL = np.where(causal_RL, scores_RL, np.float32(-np.inf))
        if len(rows):
            scores_RL -= scores_RL.max(axis=-1, keepdims=True)
        weights_RL = np.exp(scores_RL)
        weights_RL /= weights_RL.sum(axis=-1, keepdims=True)
        probs.append(np.maximum(weights_RL[causal_RL], np.finfo(np.float32).tiny))
    counts = np.tile(rows.astype(np.int64) + 1, heads)
    if not all(np.isfinite(values).all() for values in probs):
        raise CorruptCache("decoded scores are not finite")
    return LayerRows(
        counts=counts,
        keys=ranges(counts).astype(np.int32),
        probs=np.concatenate(probs).astype(np.float32),
        rest=np.zeros((heads, len(rows)), dtype=np.float32),
    )
