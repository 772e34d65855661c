"""Records to a batch of tensors: padded rows of one document each, or packed rows of several.

In: a list of `Record`s (padded) or of lists of them (packed). Out: a `Batch` whose ``rows`` say
which student rows are trained and whose ``targets`` hold the teacher's rows for exactly those, in
the same order. Which rows are trained is decided by `cachekd.data.alignment`, nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cachekd.data.alignment import LossMask, trained_rows
from cachekd.errors import ConfigError, MismatchError
from cachekd.training.attention_targets import collate_attention
from cachekd.training.spans import SpanFinder, span_factors
from cachekd.types import Batch, Float32, Int64, Record, TargetTensors

if TYPE_CHECKING:
    from torch import Tensor

REDUCTIONS = ("token_mean", "seq_mean")
_IGNORED = -100


class Collator:
    """Makes batches of records, for a `torch.utils.data.DataLoader` or by hand.

    A packed batch has no attention mask; its position ids start at 0 with every document, by which
    models of transformers keep documents apart.

    Args:
        loss_mask: which rows are trained.
        pad_token_id: id that fills rows up; no loss comes from it.
        pad_to_multiple_of: rows are filled up to a multiple of this many tokens.
        unigram: the teacher's mean distribution [V], for losses that take it.
        spans: finds phrases, for losses that take them.
        attention: whether batches hold the teacher's attention; see `Batch`.
        reduction: token_mean, where a row counts its sample's weight; or seq_mean, where the
            trained rows of a sample share it: a sum of row weights is then one of sample weights,
            and the loss sum_b w_b mean_t l_bt / sum_b w_b, over any batch or accumulated batches.

    Raises:
        ConfigError: there is no such reduction.
    """

    def __init__(
        self,
        loss_mask: LossMask = LossMask.AUTO,
        *,
        pad_token_id: int = 0,
        pad_to_multiple_of: int | None = None,
        unigram: Float32 | None = None,
        attention: bool = False,
        reduction: str = "token_mean",
        spans: SpanFinder | None = None,
    ) -> None:
        if reduction not in REDUCTIONS:
            raise ConfigError(
                f"reduction: expected one of {', '.join(REDUCTIONS)}; found {reduction!r}"
            )
        self.loss_mask = loss_mask
        self.pad_token_id = pad_token_id
        self.multiple = pad_to_multiple_of or 1
        self.unigram = unigram
        self.attention = attention
        self.reduction = reduction
        self.spans = spans

    def __call__(self, items: Sequence[Record] | Sequence[list[Record]]) -> Batch:
        """Collate records, or lists of records that share a row each.

        Raises:
            MismatchError: a row is to be trained that was not captured, or attention is asked for
                and a record has none.
            ConfigError: some records hold sampled entries and some do not.
        """
        import torch

        packed = isinstance(items[0], list)
        documents = [item if isinstance(item, list) else [item] for item in items]
        longest = max(sum(len(record.input_ids) for record in row) for row in documents)
        width = -(-longest // self.multiple) * self.multiple
        tokens = _Tokens(len(documents), width, self.pad_token_id)
        chosen: list[tuple[Record, Int64]] = []
        for number, row in enumerate(documents):
            for record in row:
                trained = self._trained(record)
                tokens.add(number, record, trained)
                chosen.append((record, trained))
            tokens.finish(number)
        positions = tokens.positions if packed else np.broadcast_to(np.arange(width), tokens.shape)
        batch: Batch = {
            "input_ids": torch.from_numpy(tokens.input_ids),
            "attention_mask": None if packed else torch.from_numpy(tokens.mask),
            "position_ids": torch.from_numpy(positions.copy()),
            "labels": torch.from_numpy(tokens.labels),
            "rows": torch.from_numpy(np.concatenate(tokens.rows)),
            "targets": self._targets(chosen),
        }
        if self.attention:
            batch["attention"] = collate_attention(
                documents, [rows for _, rows in chosen], seq_mean=self.reduction == "seq_mean"
            )
        return batch

    def _targets(self, chosen: Sequence[tuple[Record, Int64]]) -> TargetTensors:
        targets = collate_targets(chosen)
        if self.reduction == "seq_mean":
            counts = np.concatenate([np.full(len(rows), len(rows)) for _, rows in chosen])
            targets["weights"] /= _tensor([counts])
        if self.unigram is not None:
            targets["unigram"] = _tensor([self.unigram])
        if self.spans is not None:
            found = [self.spans(record.input_ids, rows) for record, rows in chosen]
            span_N, factor_N = span_factors(found, targets["weights"].numpy())
            targets["span"] = _tensor([span_N], np.int64)
            targets["span_factor"] = _tensor([factor_N])
        return targets

    def _trained(self, record: Record) -> Int64:
        trained = rows_of(record, self.loss_mask)
        if (np.diff(record.logits.offsets)[trained] == 0).any():
            raise MismatchError(
                f"sample {record.sample_id.hex()} has rows that are to be trained (loss mask "
                f"{self.loss_mask}) but were not captured. Choose a loss mask within what was "
                "captured, or capture again with --rows all"
            )
        return trained


def rows_of(record: Record, loss_mask: LossMask) -> Int64:
    """Rows of a record that are trained, but those that the teacher gave no distribution of."""
    rows = trained_rows(record.roles, record.prompt_length, loss_mask)
    if record.skipped is not None:
        rows = rows & ~record.skipped
    return np.flatnonzero(rows).astype(np.int64)


class _Tokens:
    """Token-shaped arrays of a batch, filled document by document."""

    def __init__(self, rows: int, width: int, pad: int) -> None:
        self.shape = (rows, width)
        self.input_ids = np.full(self.shape, pad, np.int64)
        self.labels = np.full(self.shape, _IGNORED, np.int64)
        self.positions = np.zeros(self.shape, np.int64)
        self.mask = np.zeros(self.shape, np.int64)
        self.rows: list[Int64] = []
        self._filled = [0] * rows

    def add(self, row: int, record: Record, trained: Int64) -> None:
        """Append a document to a row."""
        start, length = self._filled[row], len(record.input_ids)
        place = slice(start, start + length)
        self.input_ids[row, place] = record.input_ids
        self.positions[row, place] = np.arange(length)
        self.mask[row, place] = 1
        self.labels[row, start + 1 + trained] = record.input_ids[1 + trained]
        self.rows.append(row * self.shape[1] + start + trained)
        self._filled[row] += length

    def finish(self, row: int) -> None:
        """Number the filling of a row as a document of its own."""
        rest = self.shape[1] - self._filled[row]
        self.positions[row, self._filled[row] :] = np.arange(rest)


def collate_targets(chosen: Sequence[tuple[Record, Int64]]) -> TargetTensors:
    """Targets of the chosen rows of some records, one after the other.

    Args:
        chosen: records, each with the numbers of its rows, int64.

    Raises:
        ConfigError: a record holds sampled entries.
    """
    picked = []
    for record, rows in chosen:
        count = np.diff(record.logits.offsets)[rows]
        entries = _entries(record.logits.offsets[rows], count)
        picked.append((record, record.logits, rows, count, entries))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([p[3] for p in picked]))])
    shared = set.intersection(*(set(logits.lognorm) for _, logits, _, _, _ in picked))
    targets: TargetTensors = {
        "offsets": _tensor([offsets], np.int64),
        "ids": _tensor([logits.ids[at] for _, logits, _, _, at in picked], np.int64),
        "logprobs": _tensor([logits.logprobs[at] for _, logits, _, _, at in picked]),
        "tail": _tensor([logits.tail[rows] for _, logits, rows, _, _ in picked]),
        "next_ids": _tensor([r.input_ids[1 + rows] for r, _, rows, _, _ in picked], np.int64),
        "next_logprob": _tensor([logits.next_logprob[rows] for _, logits, rows, _, _ in picked]),
        "entropy": _tensor([logits.entropy[rows] for _, logits, rows, _, _ in picked]),
        "document": _tensor([np.full(len(p[2]), i) for i, p in enumerate(picked)], np.int64),
        "weights": _tensor([np.full(len(rows), r.weight) for r, _, rows, _, _ in picked]),
        "lognorm": {
            t: _tensor([logits.lognorm[t][rows] for _, logits, rows, _, _ in picked])
            for t in shared
        },
    }
    routed = [np.full(len(rows), r.expert) for r, _, rows, _, _ in picked if r.expert is not None]
    if len(routed) == len(picked):
        targets["expert"] = _tensor(routed, np.bool_)
    weights = [logits.weights[at] for _, logits, _, _, at in picked if logits.weights is not None]
    if weights and len(weights) < len(picked):
        raise ConfigError(
            "some records of a batch hold sampled entries and some do not; their losses are not "
            "estimated alike. Train on captures of one selection"
        )
    if weights:
        targets["entry_weights"] = _tensor(weights)
    return targets


def _entries(starts: Int64, counts: Int64) -> Int64:
    """Indices of the entries of rows that start at ``starts`` and hold ``counts`` each."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(counts.sum())


def _tensor(parts: Sequence[NDArray[Any]], dtype: type[Any] = np.float32) -> Tensor:
    import torch

    return torch.from_numpy(np.concatenate(parts).astype(dtype, copy=False))
