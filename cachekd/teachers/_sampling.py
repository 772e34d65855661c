"""Unbiased samples of a row's mass by systematic sampling: one uniform a row, equal steps.

Comes in: mass of each token in blocks, and the sums of the blocks. Goes out: the tokens that the
points u, u + 1, u + 2, ... (in units of one step) fall on. A token of mass m is met with
probability min(1, m / step) exactly, whatever stands around it, and the number of points differs
by at most one between draws: less variance than independent draws (RS-KD, arXiv 2503.16870).

The sums run in float64, over blocks and then within the block a point falls into, so that the
error of a marginal does not grow with the vocabulary.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachekd.data.digests import sample_key
from cachekd.teachers import Selection
from cachekd.teachers._topk import take_blocks
from cachekd.types import Int32

Float64 = NDArray[np.float64]


def row_uniforms(seed: int, input_ids: Int32) -> Float64:
    """One number in [0, 1) for each row of a document, float64 [L-1].

    That of row t is a function of the seed, the document's token ids and t alone, so neither the
    batch nor the order of a capture can change a draw. Multiples of 2^-32: u + j is exact.
    """
    packed = sample_key(input_ids) + struct.pack("<q", seed)
    key = hashlib.blake2b(packed, digest_size=16).digest()
    bits = np.random.Philox(key=int.from_bytes(key, "little"))
    return np.asarray((bits.random_raw(len(input_ids) - 1) >> np.uint64(32)) / 2.0**32)


def uniforms(
    selection: Selection, documents: Sequence[Int32], captured: Sequence[NDArray[np.bool_]]
) -> Float64 | None:
    """Uniforms of the captured rows, document after document; None where nothing is sampled."""
    if not (selection.tau or selection.samples):
        return None
    return np.concatenate(
        [
            row_uniforms(selection.seed, ids_L)[mask]
            for ids_L, mask in zip(documents, captured, strict=True)
        ]
    )


def systematic(
    mass_NBW: Tensor, sums_NB: Tensor, uniform_N: Tensor, step_N: Tensor, points: int
) -> Tensor:
    """Tokens under the points (u + j) * step, j = 0, 1, ...; int64 [N, J], -1 beyond the mass.

    Args:
        mass_NBW: float32, not negative, in blocks; a token's id is its place in the row.
        sums_NB: sum of each block (of the same numbers: what differs by rounding is rescaled).
        uniform_N: float64 in [0, 1).
        step_N: float64, distance of two points in units of the mass.
        points: J, at least the number of points that can fall on the mass of a row.
    """
    ends_NB = sums_NB.double().cumsum(dim=-1)
    j_J = torch.arange(points, dtype=torch.float64, device=mass_NBW.device)
    at_NJ = (uniform_N[:, None] + j_J) * step_N[:, None]
    inside_NJ = at_NJ < ends_NB[:, -1:]
    block_NJ = torch.searchsorted(ends_NB, at_NJ, right=True).clamp_(max=sums_NB.shape[1] - 1)
    sum_NJ = sums_NB.double().gather(1, block_NJ)
    share_NJ = 1.0 - (ends_NB.gather(1, block_NJ) - at_NJ) / sum_NJ
    within_NJW = take_blocks(mass_NBW, block_NJ).double().cumsum(dim=-1)
    whole_NJ = within_NJW[:, :, -1]
    # A point at a block's very end belongs to its last token that has mass.
    limit_NJ = torch.nextafter(whole_NJ, torch.zeros_like(whole_NJ))
    level_NJ = torch.minimum(share_NJ.clamp_(min=0.0) * whole_NJ, limit_NJ)
    place_NJ = (within_NJW <= level_NJ[:, :, None]).sum(dim=-1)
    ids_NJ = block_NJ * mass_NBW.shape[2] + place_NJ
    return torch.where(inside_NJ, ids_NJ, -1)
