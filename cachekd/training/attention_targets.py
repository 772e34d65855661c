"""Attention of records to what a batch holds of it: rows that are trained, where documents begin.

In: `Record`s in their batch rows, with the rows of each that are trained. Out: `AttentionTargets`,
of the documents that have such a row among their captured ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cachekd.errors import MismatchError
from cachekd.types import (
    AttentionDocument,
    AttentionRows,
    AttentionTargets,
    Float32,
    Int64,
    Record,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def collate_attention(
    documents: Sequence[Sequence[Record]], trained: Iterable[Int64], *, seq_mean: bool = False
) -> AttentionTargets:
    """What a batch holds of the attention of its records.

    Args:
        documents: records of each batch row, one after the other from its first place.
        trained: trained rows of each record, in the same order.
        seq_mean: whether the trained rows of a sample share its weight.

    Raises:
        MismatchError: a record has no attention, or lacks it for a row that is trained though no
            rows were drawn; or records hold different layers or heads.
    """
    places: list[AttentionDocument] = []
    parts, weights, rows = [], [], iter(trained)
    for batch_row, row in enumerate(documents):
        start = 0
        for record in row:
            own = next(rows)
            part = _trained_part(record, own)
            parts.append(part)
            share = record.weight / max(len(own), 1) if seq_mean else record.weight
            weights.append(part.weights * np.float32(share))
            if len(part.rows):
                places.append(
                    {
                        "batch_row": batch_row,
                        "start": start,
                        "length": part.length,
                        "rows": len(part.rows),
                    }
                )
            start += len(record.input_ids)
    return _joined(places, parts, weights)


def cut_attention(attention: AttentionRows, length: int) -> AttentionRows:
    """Attention of the first ``length`` rows of a document; their keys are among them."""
    return _some_rows(attention, np.flatnonzero(attention.rows < length), length)


def _trained_part(record: Record, trained: Int64) -> AttentionRows:
    attention = record.attention
    if attention is None:
        raise MismatchError(
            f"sample {record.sample_id.hex()} comes without attention, which the loss takes. Open "
            "the cache with attention=True; it must have been captured with --attention maps or qk"
        )
    drawn = bool((attention.weights > 1).any())
    if len(attention.rows) and not drawn and not np.isin(trained, attention.rows).all():
        raise MismatchError(
            f"sample {record.sample_id.hex()} has trained rows whose attention was not captured. "
            "Choose a loss mask within what was captured, or capture again with --attention-rows "
            "all"
        )
    return _some_rows(attention, np.flatnonzero(np.isin(attention.rows, trained)), attention.length)


def _some_rows(attention: AttentionRows, places: NDArray[np.int64], length: int) -> AttentionRows:
    """Of all layers and heads the rows at these places, of which none has a key from ``length``."""
    every = len(attention.rows)
    if len(places) == every and length == attention.length:
        return attention
    maps = len(attention.layers) * len(attention.heads)
    own = (np.arange(maps)[:, None] * every + places).ravel()
    starts, counts = attention.offsets[own], np.diff(attention.offsets)[own]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    entries = np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1])
    return AttentionRows(
        layers=attention.layers,
        heads=attention.heads,
        rows=attention.rows[places],
        weights=attention.weights[places],
        offsets=offsets,
        keys=attention.keys[entries],
        probs=attention.probs[entries],
        rest=attention.rest[:, :, places],
        length=length,
    )


def _joined(
    places: list[AttentionDocument], parts: Sequence[AttentionRows], weights: Sequence[Float32]
) -> AttentionTargets:
    import torch

    def tensor(arrays: Iterable[NDArray[Any]], dtype: type[np.generic], axis: int = 0) -> Tensor:
        joined = np.concatenate(list(arrays), axis=axis)
        return torch.from_numpy(np.ascontiguousarray(joined, dtype))

    if len({part.rest.shape[:2] for part in parts}) > 1:
        raise MismatchError(
            "records of a batch hold attention of different layers or heads. Train on captures "
            "with the same --attention-layers and --attention-heads"
        )
    counts_N = np.concatenate([np.diff(part.offsets) for part in parts])
    return {
        "documents": places,
        "positions": tensor((part.rows for part in parts), np.int64),
        "weights": tensor(weights, np.float32),
        "rest": tensor((part.rest for part in parts), np.float32, axis=-1),
        "offsets": tensor([np.zeros(1, np.int64), np.cumsum(counts_N)], np.int64),
        "keys": tensor((part.keys for part in parts), np.int32),
        "probs": tensor((part.probs for part in parts), np.float32),
    }
