"""The k best of a row of log-probabilities, exactly, with equal ones in order of their ids.

Comes in: values in blocks of `BLOCK` and the maximum of each block. Goes out: the k best, best
first. Only the k best blocks are searched: an entry of a block that k others precede (by maximum,
then by number) has k entries before it, so it cannot be among the k best. Ties are settled by one
integer that holds value and id, because ``torch.topk`` promises no order of equal values.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64
_ID_BITS = 24
_ID_MASK = (1 << _ID_BITS) - 1


def best_entries(
    values_NBW: Tensor, maxima_NB: Tensor, less_N: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k best of ``values - less``: values float32 [N, K] falling, and ids int64 [N, K].

    Args:
        values_NBW: float32, row after row in blocks of W; an id is its place in the row. No NaN.
        maxima_NB: maximum of each block.
        less_N: what is taken off each row's values before they are compared.
        k: at least 1, at most the entries of a row.
    """
    rows, blocks, width = values_NBW.shape
    if searches_all_blocks(k, blocks):
        values_NC = values_NBW.flatten(1) - less_N[:, None]
        ids_NC = torch.arange(blocks * width, device=values_NBW.device).expand(rows, -1)
    else:
        numbers_B = torch.arange(blocks, device=values_NBW.device)
        keys_NB = _keys(maxima_NB - less_N[:, None], numbers_B)
        block_NK = _ids(torch.topk(keys_NB, k, dim=-1, sorted=False).values)
        values_NC = (take_blocks(values_NBW, block_NK) - less_N[:, None, None]).flatten(1)
        within_W = torch.arange(width, device=values_NBW.device)
        ids_NC = (block_NK[:, :, None] * width + within_W).flatten(1)
    keys_NK = torch.topk(_keys(values_NC, ids_NC), k, dim=-1).values
    return _values(keys_NK), _ids(keys_NK)


def merged(values_NK: Tensor, ids_NK: Tensor, kept_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Kept entries of each row, each id once, best first: values, ids, and which places hold one.

    Places that hold none come last in a row; their id is that of the row's first place, or 0.

    Args:
        values_NK: float32; equal ids of a row have equal values.
        ids_NK: int64; an id may be there several times.
        kept_NK: which of them are wanted.
    """
    lowest = torch.iinfo(torch.int64).min
    keys_NK = torch.where(kept_NK, _keys(values_NK, ids_NK), lowest).sort(descending=True).values
    repeated_NK = torch.zeros_like(kept_NK)
    repeated_NK[:, 1:] = keys_NK[:, 1:] == keys_NK[:, :-1]
    keys_NK = keys_NK.masked_fill(repeated_NK, lowest).sort(descending=True).values
    found_NK = keys_NK != lowest
    ids_NK = _ids(torch.where(found_NK, keys_NK, keys_NK[:, :1]))
    return _values(keys_NK), ids_NK.masked_fill(~found_NK[:, :1], 0), found_NK


def searches_all_blocks(k: int, blocks: int) -> bool:
    """Whether k is so large that looking at the k best blocks saves nothing."""
    return 2 * k >= blocks


def take_blocks(values_NBW: Tensor, block_NK: Tensor) -> Tensor:
    """Blocks of each row by number, [N, K, W]."""
    blocks = values_NBW.shape[1]
    first_N1 = torch.arange(len(values_NBW), device=values_NBW.device)[:, None] * blocks
    flat_n = (block_NK + first_N1).flatten()
    taken_nW = values_NBW.flatten(0, 1).index_select(0, flat_n)
    return taken_nW.view(*block_NK.shape, -1)


def _keys(values: Tensor, ids: Tensor) -> Tensor:
    """Integers in the order of the values, equal ones in the opposite order of their ids."""
    bits = (values + 0.0).view(torch.int32)  # -0 becomes 0: equal values, equal bits
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # float bits of negatives fall: turn them round
    return (ordered.long() << _ID_BITS) | (_ID_MASK - ids)


def _values(keys: Tensor) -> Tensor:
    ordered = (keys >> _ID_BITS).to(torch.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)


def _ids(keys: Tensor) -> Tensor:
    return _ID_MASK - (keys & _ID_MASK)
