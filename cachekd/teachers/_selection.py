"""Dense logits to sparse targets on the device: selection, exact tail, normalisers, entropy.

Comes in: logits of a tile of rows. Goes out: ragged numpy arrays (see `cachekd.types.TopKLogits`).
All sums are float32 over the real vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cachekd.errors import TeacherError
from cachekd.teachers import Selection
from cachekd.types import Float32, Int32, Int64, TopKLogits

# Elements of a tile: on a CPU it should stay in the cache through the dozen passes over it.
_TILE_ELEMENTS = {"cpu": 1 << 18}
_TILE_ELEMENTS_DEVICE = 1 << 25


def tile_rows(device_type: str, vocab_size: int) -> int:
    """Rows of a tile on this kind of device."""
    return max(1, _TILE_ELEMENTS.get(device_type, _TILE_ELEMENTS_DEVICE) // vocab_size)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tile:
    """Targets of N rows: counts [N], ids and logprobs [n], scalars [S, N].

    The scalars are tail, next_logprob, entropy, then a log-normaliser for each temperature.
    """

    counts: Int64
    ids: Int32
    logprobs: Float32
    scalars: Float32


def select(logits_NV: Tensor, next_ids_N: Tensor, selection: Selection) -> Tile:
    """Sparse targets of N rows.

    Raises:
        TeacherError: a row holds NaN or +inf, or nothing but -inf.
    """
    logits_NV = logits_NV[:, : selection.vocab_size].float()
    norm_N = torch.logsumexp(logits_NV, dim=-1)
    bad_N = ~torch.isfinite(norm_N)
    if bool(bad_N.any()):
        raise TeacherError(f"NaN or infinite logits in {int(bad_N.sum())} of {len(norm_N)} rows")
    logprobs_NV = logits_NV - norm_N[:, None]
    best_NK, ids_NK = _ordered_top(logprobs_NV, selection.k)
    keep_NK = _within_mass(best_NK, selection)
    scalars = [
        _log_tail(logprobs_NV, ids_NK, keep_NK),
        logprobs_NV.gather(1, next_ids_N[:, None]).squeeze(1),
        torch.special.entr(logprobs_NV.exp()).sum(dim=-1),
        *(torch.logsumexp(logprobs_NV / t, dim=-1) for t in selection.temperatures),
    ]
    return Tile(
        counts=keep_NK.sum(dim=-1).cpu().numpy().astype(np.int64),
        ids=ids_NK[keep_NK].to(torch.int32).cpu().numpy(),
        logprobs=best_NK[keep_NK].cpu().numpy(),
        scalars=torch.stack(scalars).cpu().numpy(),
    )


def _ordered_top(logprobs_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best, best first, equal ones by ascending id, whatever order topk gives them in."""
    best_NK, ids_NK = torch.topk(logprobs_NV, k, dim=-1)
    ids_NK, by_id = torch.sort(ids_NK, dim=-1)
    best_NK, by_value = torch.sort(best_NK.gather(1, by_id), dim=-1, descending=True, stable=True)
    return best_NK, ids_NK.gather(1, by_value)


def _within_mass(best_NK: Tensor, selection: Selection) -> Tensor:
    """The shortest head that reaches mass p, at least min_k long, without impossible tokens."""
    possible_NK = best_NK > -torch.inf
    if selection.p >= 1.0:
        return possible_NK
    mass_NK = best_NK.exp().cumsum(dim=-1)
    before_NK = torch.cat([torch.zeros_like(mass_NK[:, :1]), mass_NK[:, :-1]], dim=-1)
    keep_NK = before_NK < selection.p
    keep_NK[:, : selection.min_k] = True
    return keep_NK & possible_NK


def _log_tail(logprobs_NV: Tensor, ids_NK: Tensor, keep_NK: Tensor) -> Tensor:
    """Log mass outside the head, summed over the tail itself: exact where 1 - head would cancel."""
    rows_n, _ = keep_NK.nonzero(as_tuple=True)
    tail_NV = logprobs_NV.clone()
    tail_NV[rows_n, ids_NK[keep_NK]] = -torch.inf
    return torch.logsumexp(tail_NV, dim=-1)


def assemble(
    tiles: Sequence[Tile], captured: Sequence[np.ndarray], selection: Selection
) -> list[TopKLogits]:
    """Put the tiles of a batch together again, a record for each document.

    Args:
        tiles: in the order of the captured rows, document after document.
        captured: for each document bool [L-1]; the other rows get an empty support.
        selection: what was kept.
    """
    counts = np.concatenate([tile.counts for tile in tiles])
    ids = np.concatenate([tile.ids for tile in tiles])
    logprobs = np.concatenate([tile.logprobs for tile in tiles])
    scalars = np.concatenate([tile.scalars for tile in tiles], axis=1)
    records, row, entry = [], 0, 0
    for mask in captured:
        rows = int(mask.sum())
        of_row = counts[row : row + rows]
        entries = int(of_row.sum())
        all_counts = np.zeros(len(mask), dtype=np.int64)
        all_counts[mask] = of_row
        all_scalars = np.zeros((len(scalars), len(mask)), dtype=np.float32)
        all_scalars[:, mask] = scalars[:, row : row + rows]
        records.append(
            TopKLogits(
                offsets=np.concatenate([[0], np.cumsum(all_counts)]).astype(np.int64),
                ids=ids[entry : entry + entries],
                logprobs=logprobs[entry : entry + entries],
                weights=None,
                tail=all_scalars[0],
                next_logprob=all_scalars[1],
                entropy=all_scalars[2],
                lognorm={1.0: np.zeros(len(mask), dtype=np.float32)}
                | {t: all_scalars[3 + i] for i, t in enumerate(selection.temperatures)},
                vocab_size=selection.vocab_size,
            )
        )
        row, entry = row + rows, entry + entries
    return records
