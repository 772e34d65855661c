"""Held-out text that no teacher has scored: the cross entropy of the student on it.

In: data files and the caches of a run. Out: a dataset of records without targets, tokenised as the
first cache's samples were, and the collator that goes with it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from cachekd.config import DataConfig
from cachekd.data.alignment import LossMask, trained_rows
from cachekd.data.samples import Prepared, prepare
from cachekd.data.sources import read_rows
from cachekd.errors import ConfigError
from cachekd.training.collate import Collator
from cachekd.types import Int64, Record, Sample, TopKLogits

if TYPE_CHECKING:
    from cachekd.store.identity import Identity

_LONGEST = int(np.iinfo(np.int32).max)


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
        identity: of the cache whose wording is used: prompt and chat template, EOS, clock.
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
        identity: Identity,
        tokenizer: Any,
        *,
        loss_mask: LossMask = LossMask.AUTO,
        max_length: int | None = None,
        pad_token_id: int = 0,
        reduction: str = "token_mean",
    ) -> None:
        self.vocab_size = int(identity.source["vocab_size"])
        self.collate = TextCollator(loss_mask, pad_token_id=pad_token_id, reduction=reduction)
        prepared = _prepared(data, identity, tokenizer, max_length)
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
        return _record(self._samples[index], self.vocab_size)


class TextCollator(Collator):
    """Batches of records that no teacher has scored: their targets have no entries."""

    def _trained(self, record: Record) -> Int64:
        rows = trained_rows(record.roles, record.prompt_length, self.loss_mask)
        return np.flatnonzero(rows).astype(np.int64)


def _prepared(
    data: tuple[str, ...], identity: Identity, tokenizer: Any, max_length: int | None
) -> Prepared:
    """Samples of the data, made as those of the cache were."""
    config = _as_captured(data, identity, max_length)
    return prepare(
        read_rows(config),
        config,
        _worded(tokenizer, identity),
        context_length=max_length or _LONGEST,
        vocab_size=int(identity.source["vocab_size"]),
        clock=datetime.fromisoformat(identity.provenance["clock"]),
    )


def _as_captured(data: tuple[str, ...], identity: Identity, max_length: int | None) -> DataConfig:
    """Settings of the data under which the cache's samples were made.

    Raises:
        ConfigError: the cache does not say.
    """
    made = identity.provenance
    missing = [name for name in ("prompt_template", "add_eos", "clock") if name not in made]
    if missing:
        raise ConfigError(
            f"eval_data: the cache does not say how its samples were worded ({', '.join(missing)} "
            "missing in its cache.json), so other text cannot be worded alike. Evaluate on a cache "
            "with --eval-cache"
        )
    return DataConfig(
        data=data,
        prompt_template=made["prompt_template"],
        add_eos=made["add_eos"],
        max_length=max_length,
        on_long="truncate",
    )


def _worded(tokenizer: Any, identity: Identity) -> Any:
    """A copy of the tokenizer with the template and special tokens of the capture."""
    import copy

    worded = copy.deepcopy(tokenizer)
    for name in ("chat_template", "bos_token", "eos_token"):
        if identity.provenance.get(name) is not None:
            setattr(worded, name, identity.provenance[name])
    return worded


def _record(sample: Sample, vocab_size: int) -> Record:
    rows = len(sample.input_ids) - 1
    nothing, zeros = np.empty(0, np.float32), np.zeros(rows, np.float32)
    logits = TopKLogits(
        offsets=np.zeros(rows + 1, np.int64),
        ids=np.empty(0, np.int32),
        logprobs=nothing,
        weights=None,
        tail=zeros,
        next_logprob=zeros,
        lognorm={},
        entropy=zeros,
        vocab_size=vocab_size,
    )
    return Record(
        key=b"",
        sample_id=b"",
        input_ids=sample.input_ids,
        roles=sample.roles,
        prompt_length=sample.prompt_length,
        domain=sample.domain,
        weight=sample.weight,
        logits=logits,
    )
