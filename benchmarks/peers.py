"""The storage schemes of other tools, written from their published descriptions, as opponents.

DistillKit: the k best in order of probability, ids bit-packed at ceil(log2 V) bits, the first
exact_k log-probs in bfloat16, the others as a least-squares fit of a few terms of their place
t = 0, 1, ... with float32 coefficients. Megatron-LM: uint16 + bool ids and float16 values of the k
best, zstd level 3. Raw: int32 ids and float16 values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import zstandard

Array = np.ndarray


@dataclass(frozen=True)
class Scheme:
    """A setting of DistillKit: entries, exact ones, and the terms of the fit."""

    name: str
    k: int
    exact_k: int
    terms: tuple[str | int, ...]


RECOMMENDED = Scheme("recommended", 128, 16, (0, 1, 2, 3, 4, "sqrt"))
BUDGET = Scheme("budget", 50, 1, (0, 1, "sqrt"))


def distillkit_bytes(scheme: Scheme, vocab: int) -> float:
    """Bytes a token: both parts are whole bytes."""
    values = math.ceil((16 * scheme.exact_k + 32 * len(scheme.terms)) / 8)
    return values + math.ceil(scheme.k * math.ceil(math.log2(vocab)) / 8)


def distillkit_values(scheme: Scheme, logprobs_NK: Array) -> Array:
    """Log-probs of the k best as they come back, float64 [N, k]."""
    best = torch.from_numpy(logprobs_NK[:, : scheme.k].astype(np.float32))
    exact = best[:, : scheme.exact_k].to(torch.bfloat16).double()
    rest = best[:, scheme.exact_k :].double()
    t = torch.arange(rest.shape[1], dtype=torch.float64)
    columns = [t.sqrt() if term == "sqrt" else t ** int(term) for term in scheme.terms]
    terms = torch.stack(columns, 1)
    fit = torch.linalg.pinv(terms) @ rest.T
    return torch.cat([exact, (terms @ fit.float().double()).T], 1).numpy()


def unpack_bits(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Integers of ``bits`` bits each, most significant first, [..., count]: expanded bit by bit."""
    places = torch.arange(7, -1, -1)
    flat = ((packed.unsqueeze(-1) >> places) & 1).flatten(-2)[..., : count * bits]
    powers = 2 ** torch.arange(bits - 1, -1, -1)
    return (flat.unflatten(-1, (count, bits)).long() * powers).sum(-1)


def pack_bits(values: Array, bits: int) -> Array:
    """Rows of integers as bytes, most significant bit first, uint8 [N, bytes]."""
    places = np.arange(bits - 1, -1, -1)
    flat = ((values[..., None] >> places) & 1).astype(np.uint8).reshape(len(values), -1)
    return np.packbits(flat, axis=1)


def megatron_bytes(ids_NK: Array, logprobs_NK: Array, k: int, block: int = 4096) -> float:
    """Bytes a token: low 16 bits, a byte for bit 17, and a float16, compressed in blocks."""
    total = 0
    for start in range(0, len(ids_NK), block):
        ids = ids_NK[start : start + block, :k].astype(np.uint32)
        planes = [
            (ids & 0xFFFF).astype("<u2"),
            (ids >> 16).astype(np.uint8),
            logprobs_NK[start : start + block, :k].astype("<f2"),
        ]
        data = b"".join(np.ascontiguousarray(plane).tobytes() for plane in planes)
        total += len(zstandard.ZstdCompressor(level=3).compress(data))
    return total / len(ids_NK)


def raw_bytes(ids_NK: Array, logprobs_NK: Array, k: int, *, zstd: bool, block: int = 4096) -> float:
    """Bytes a token of int32 ids and float16 log-probs, as they are or in zstd level 3."""
    if not zstd:
        return 6.0 * k
    total = 0
    for start in range(0, len(ids_NK), block):
        rows = slice(start, start + block)
        data = ids_NK[rows, :k].astype("<i4").tobytes()
        data += logprobs_NK[rows, :k].astype("<f2").tobytes()
        total += len(zstandard.ZstdCompressor(level=3).compress(data))
    return total / len(ids_NK)
