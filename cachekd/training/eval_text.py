"""Held-out text that no teacher has scored: the cross entropy of the student on it.

In: data files and how a run words its samples. Out: a dataset of records without targets, and the
collator that goes with it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from cachekd.config import DataConfig
from cachekd.data.alignment import LossMask, trained_rows
from cachekd.errors import ConfigError
from cachekd.training.collate import Collator
from cachekd.training.texts import Wording, bare_record, samples_of
from cachekd.types import Int64, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCounts:
    """What a held-out text came to.

    Attributes:
        samples: samples that are evaluated.
        trained_rows: rows of them that count.
        dropped: samples left out, by reason.
        changed: samples changed, by how: "truncated".
    """

    samples: int
    trained_rows: int
    dropped: dict[str, int]
    changed: dict[str, int]


class TextDataset(Dataset[Record]):
    """Samples of data files as records without targets.

    Args:
        data: files or names, as ``--data`` of precompute.
        wording: prompt and chat template, EOS and clock: of a cache, or of the run.
        tokenizer: the student's, which is the cache's.
        loss_mask: which rows count.
        max_length: longer samples are cut to it.
        pad_token_id: id that fills rows up.
        reduction: as of training, see `Collator`.

    Attributes:
        collate: makes batches of the records.
        counts: what is evaluated and what was left out.
        vocab_size: real vocabulary.

    Raises:
        DataError: a row cannot be used.
        ConfigError: no row is left to evaluate.
    """

    def __init__(
        self,
        data: tuple[str, ...],
        wording: Wording,
        tokenizer: Any,
        *,
        loss_mask: LossMask = LossMask.AUTO,
        max_length: int | None = None,
        pad_token_id: int = 0,
        reduction: str = "token_mean",
    ) -> None:
        self.vocab_size = wording.vocab_size
        self.collate = TextCollator(loss_mask, pad_token_id=pad_token_id, reduction=reduction)
        settings = DataConfig(data=data, max_length=max_length, on_long="truncate")
        prepared = samples_of(settings, wording, tokenizer)
        rows = [
            int(trained_rows(sample.roles, sample.prompt_length, loss_mask).sum())
            for sample in prepared.samples
        ]
        # Held in memory, so that workers of a loader can be given them however they are started.
        self._samples = [prepared.samples[int(place)] for place in np.flatnonzero(rows)]
        dropped = Counter(prepared.skipped)
        dropped["no trained row"] += rows.count(0)
        self.counts = TextCounts(
            samples=len(self._samples),
            trained_rows=sum(rows),
            dropped=dict(+dropped),
            changed=dict(prepared.changed),
        )
        if not self.counts.samples:
            raise ConfigError(
                f"eval_data: nothing to evaluate: of {len(rows)} samples none has a trained row. "
                f"Check max_length and the loss mask ({loss_mask})"
            )

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Record:
        return bare_record(self._samples[index], self.vocab_size)


class TextCollator(Collator):
    """Batches of records that no teacher has scored: their targets have no entries."""

    def _trained(self, record: Record) -> Int64:
        rows = trained_rows(record.roles, record.prompt_length, self.loss_mask)
        return np.flatnonzero(rows).astype(np.int64)
