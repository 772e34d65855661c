"""Prompts of an on-policy run: samples of caches, or of data files that no teacher has scored.

In: a `CacheDataset`, or settings of the data. Out: `Prompts`, a dataset whose items are visits: a
sample, and which pass over it that is. What has no prompt, or leaves no room for a response, is
found before a model is loaded, and refused or counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from cachekd.config import DataConfig, RowsConfig
from cachekd.data.alignment import response_starts
from cachekd.data.packed import Keys
from cachekd.errors import ConfigError, DataError
from cachekd.store.collected import collect
from cachekd.store.samples import keys_of, read_samples, sample_ids, write_samples
from cachekd.training.cut import truncate
from cachekd.training.loader import CacheDataset, summary
from cachekd.training.order import Order
from cachekd.training.ranks import Words, set_digest, words_of
from cachekd.training.texts import Wording, bare_record, samples_of
from cachekd.types import Int64, Record

if TYPE_CHECKING:
    from cachekd.config import TrainConfig


class Visit(NamedTuple):
    """One use of a sample.

    ``group`` numbers the collections of an epoch, ``turn`` the passes over one of them, and
    ``round`` the batches of an epoch, alike in all processes.
    """

    sample: int
    epoch: int
    group: int
    turn: int
    round: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Visited:
    """A visit with its sample."""

    visit: Visit
    record: Record


class TextSamples(Dataset[Record]):
    """Samples of data files as records without targets, with what an `EpochSampler` asks for.

    Args:
        config: names the data, its columns, and what to do with bad rows.
        wording: how rows become tokens.
        tokenizer: the student's.
        max_length: records are cut to this many tokens.

    Attributes:
        table: all but their tokens.
        vocab_size: real vocabulary.
        dropped: rows that could not be used, by reason.

    Raises:
        DataError: a row cannot be used.
    """

    def __init__(
        self, config: TrainConfig, wording: Wording, tokenizer: Any, max_length: int | None
    ) -> None:
        settings = DataConfig(
            **{item.name: getattr(config, item.name) for item in fields(RowsConfig)},
            on_bad=config.on_bad,
        )
        prepared = samples_of(settings, wording, tokenizer)
        # Held in memory, so that workers of a loader can be given them however they are started.
        self._samples = list(prepared.samples)
        keys = keys_of(self._samples)
        self.sample_ids: Keys = sample_ids(self._samples, keys)
        shard = write_samples(self._samples, keys, self.sample_ids, range(len(self._samples)))
        self.table = collect([(read_samples("data", shard), False)])
        self.vocab_size = wording.vocab_size
        self.order = Order()
        self.dropped: Counter[str] = Counter(prepared.skipped)
        self._limit = max_length or int(np.iinfo(np.int32).max)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Record:
        record = bare_record(
            self._samples[index], self.vocab_size, sample_id=self.sample_ids[index]
        )
        return truncate(record, self._limit)

    def records(self, indices: Sequence[int]) -> list[Record]:
        """Samples, each cut to ``max_length`` tokens."""
        return [self[index] for index in indices]

    def identities(self) -> Words:
        """What tells samples apart, [P, 2]."""
        return words_of(self.sample_ids)

    def digest(self) -> str:
        """Digest of the set of samples."""
        return set_digest(self.sample_ids)


class Prompts(Dataset[Visited]):
    """Samples that have a prompt, by visits.

    Args:
        samples: those of caches or of data files.
        room: most tokens of a response.
        limit: most tokens of prompt and response, or None.
        on_long: fail or skip where a prompt leaves no room.

    Attributes:
        starts: tokens of each sample's prompt, int64 [P]; -1 where it is not used.
        weights: weight of each sample.
        left_out: samples that are not used, by reason.

    Raises:
        DataError: a prompt leaves no room, and ``on_long`` is fail.
        ConfigError: no sample is left.
    """

    def __init__(
        self, samples: CacheDataset | TextSamples, room: int, limit: int | None, on_long: str
    ) -> None:
        self.samples = samples
        self.vocab_size = samples.vocab_size
        starts_P, self.weights = _facts(samples)
        self.left_out: Counter[str] = Counter(samples.dropped)
        self.left_out.update({"no prompt": int((starts_P < 0).sum())})
        long_P = starts_P + room > (limit or np.iinfo(np.int64).max)
        if long_P.any() and on_long != "skip":
            at = int(np.flatnonzero(long_P)[0])
            raise DataError(
                f"sample {samples.sample_ids[at].hex()}: expected at most {limit} tokens, found a "
                f"prompt of {starts_P[at]} and {room} new ones. Lower --max-new-tokens, raise "
                "--max-length if the contexts of student and teacher allow it, or choose "
                "--on-long skip"
            )
        self.left_out.update({"prompt too long": int(long_P.sum())})
        self.left_out = +self.left_out
        self.starts: Int64 = np.where(long_P, -1, starts_P)
        if not (self.starts >= 0).any():
            raise ConfigError(
                f"nothing to write responses to: of {len(samples)} samples none has a prompt; left "
                f"out: {dict(self.left_out)}. Expected rows with a prompt and a response"
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, visit: Visit) -> Visited:
        return self.__getitems__([visit])[0]

    def __getitems__(self, visits: Sequence[Visit]) -> list[Visited]:
        """Visits of a batch, read together; torch's DataLoader asks for it."""
        records = self.samples.records([visit.sample for visit in visits])
        return [Visited(visit=v, record=r) for v, r in zip(visits, records, strict=True)]

    def digest(self) -> str:
        """Digest of the set of samples."""
        return self.samples.digest()

    def counts(self) -> Mapping[str, object]:
        """Counts for reports, as JSON types."""
        own = dict(summary(self.samples)) if isinstance(self.samples, CacheDataset) else {}
        return {
            **own,
            "samples": len(self),
            "prompts": int((self.starts >= 0).sum()),
            "prompt_tokens": int(self.starts[self.starts >= 0].sum()),
            "dropped": dict(self.left_out),
            "samples_digest": self.digest(),
        }


def _facts(samples: CacheDataset | TextSamples) -> tuple[Int64, Any]:
    """Where the response of each sample begins, and its weight."""
    if isinstance(samples, TextSamples):
        return response_starts(samples.table), samples.table.weights
    starts_P, weights_P = np.full(len(samples), -1, np.int64), np.ones(len(samples))
    for own, table in samples.tables():
        if not len(own):
            continue
        starts_P[own] = response_starts(table)
        weights_P[own] = table.weights
    return starts_P, weights_P
