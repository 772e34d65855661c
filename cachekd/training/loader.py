"""Reading caches for training: a dataset of records.

In: opened caches (or their locations). Out: `Record`s cut to a length, one at a time or several for
a packed row. What stays in memory of a sample is packed, about a hundred bytes with its cache's.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from cachekd.data.alignment import LossMask, trained_rows
from cachekd.data.packed import Keys, Places
from cachekd.errors import ConfigError, MismatchError
from cachekd.training.attention_targets import cut_attention
from cachekd.training.checks import check_one_tokenizer
from cachekd.types import Float32, Int32, Record, TopKLogits

if TYPE_CHECKING:
    from cachekd.store.reader import Cache

Location = str | os.PathLike[str]
Index = int | tuple[int, ...]


class CacheDataset(Dataset[Record | list[Record]]):
    """The samples of one or more caches that have something to train on.

    ``dataset[i]`` is a record; ``dataset[(i, j, k)]`` is the list of records of one packed row.

    Args:
        caches: an open cache or its location, or several. They must share one tokenizer.
        loss_mask: which rows are trained.
        max_length: records are cut to this many tokens.

    Attributes:
        lengths: tokens of each sample after cutting, int32.
        sample_ids: content id of each sample, packed.
        truncated: samples that were cut.
        trained: rows that are trained, over all samples.
        dropped: samples left out, by reason.
        vocab_size: real vocabulary of the caches.

    Raises:
        ConfigError: there is nothing to train on.
        MismatchError: the caches have different tokenizers, or lack rows that would be trained.
    """

    def __init__(
        self,
        caches: Cache | Location | Sequence[Cache | Location],
        *,
        loss_mask: LossMask = LossMask.AUTO,
        max_length: int | None = None,
    ) -> None:
        self.caches = _opened(caches)
        self.loss_mask = loss_mask
        self.max_length = max_length
        check_one_tokenizer(self.caches)
        _check_rows(self.caches, loss_mask)
        self.vocab_size = int(self.caches[0].identity.source["vocab_size"])
        self.dropped: Counter[str] = Counter()
        self.truncated = self.trained = 0
        taken = [self._taken(number, skip) for number, skip in enumerate(_repeated(self.caches))]
        self._cache = np.repeat(np.arange(len(taken), dtype=np.int32), list(map(len, taken)))
        self._row: Int32 = np.concatenate(taken)
        held = list(zip(self.caches, taken, strict=True))
        self.sample_ids = Keys.joined(
            [Keys.of(cache.sample_ids).take(rows) for cache, rows in held]
        )
        lengths = np.concatenate([cache.lengths[rows] for cache, rows in held])
        self.lengths: Int32 = np.minimum(lengths, self._limit).astype(np.int32)
        if not len(self):
            raise ConfigError(
                f"nothing to train on: of {sum(map(len, self.caches))} samples none is left; "
                f"left out: {dict(self.dropped)}. Check max_length and the loss mask ({loss_mask})"
            )

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, index: Index) -> Record | list[Record]:
        if isinstance(index, tuple):
            return self.records(index)
        return self.record(index)

    def __getitems__(self, indices: Sequence[Index]) -> list[Record | list[Record]]:
        """Items of a batch, decoded together; torch's DataLoader asks for it."""
        flat = [i for index in indices for i in (index if isinstance(index, tuple) else (index,))]
        records = iter(self.records(flat))
        return [
            [next(records) for _ in index] if isinstance(index, tuple) else next(records)
            for index in indices
        ]

    def record(self, index: int) -> Record:
        """One sample, cut to ``max_length`` tokens."""
        return self.records([index])[0]

    def records(self, indices: Sequence[int]) -> list[Record]:
        """Samples, each cut to ``max_length`` tokens."""
        found: dict[int, Record] = {}
        for number, cache in enumerate(self.caches):
            own = [at for at, i in enumerate(indices) if self._cache[i] == number]
            whole = cache.read([int(self._row[indices[at]]) for at in own])
            found |= {
                at: truncate(record, self._limit) for at, record in zip(own, whole, strict=True)
            }
        return [found[at] for at in range(len(indices))]

    def capture_id(self, index: int) -> str:
        """Capture id of the cache that a sample is read from."""
        return self.caches[int(self._cache[index])].identity.capture_id

    def unigram(self) -> Float32 | None:
        """The teacher's mean distribution [V]: of all caches that hold one, weighed alike."""
        held = [u for u in (cache.unigram() for cache in self.caches) if u is not None]
        return np.mean(held, axis=0, dtype=np.float32) if held else None

    def digest(self) -> str:
        """Digest of the set of samples: equal sets train in equal order."""
        ids = Keys(np.sort(self.sample_ids.array))
        return blake2b(ids.data.data, digest_size=16).hexdigest()

    @property
    def _limit(self) -> int:
        return self.max_length or int(np.iinfo(np.int32).max)

    def _taken(self, number: int, repeated: NDArray[np.bool_]) -> Int32:
        """Rows of a cache that are trained, the others counted.

        Args:
            number: which cache.
            repeated: samples of it that were met before, [P].
        """
        cache, rows = self.caches[number], array("i")
        if repeated.any():
            self.dropped["held more than once"] += int(repeated.sum())
        for row in map(int, np.flatnonzero(~repeated)):
            roles, prompt_length = cache.roles(row)
            trained = trained_rows(roles, prompt_length, self.loss_mask)[: self._limit - 1]
            if cache.identity.capture.get("rows") == "response":
                there = trained_rows(roles, prompt_length, LossMask.AUTO)[: len(trained)]
                if (trained & ~there).any():
                    raise _not_captured(cache, self.loss_mask)
            if not trained.any():
                self.dropped["no trained row"] += 1
                continue
            self.trained += int(trained.sum())
            self.truncated += int(cache.lengths[row]) > self._limit
            rows.append(row)
        return np.array(rows, dtype=np.int32)


def _repeated(caches: Sequence[Cache]) -> list[NDArray[np.bool_]]:
    """Of each cache the samples that an earlier place has too, under the same capture."""
    repeated = [np.zeros(len(cache.sample_ids), dtype=np.bool_) for cache in caches]
    for capture in {cache.identity.capture_id for cache in caches}:
        own = [i for i, cache in enumerate(caches) if cache.identity.capture_id == capture]
        copies = Places(Keys.joined([Keys.of(caches[i].sample_ids) for i in own])).copies()
        ends = np.cumsum([len(repeated[i]) for i in own])
        for i, part in zip(own, np.split(copies > 0, ends[:-1]), strict=True):
            repeated[i] = part
    return repeated


def truncate(record: Record, length: int) -> Record:
    """The first ``length`` tokens of a record, with their length-1 rows of targets."""
    if len(record.input_ids) <= length:
        return record
    full = record.logits
    end = int(full.offsets[length - 1])
    logits = TopKLogits(
        offsets=full.offsets[:length],
        ids=full.ids[:end],
        logprobs=full.logprobs[:end],
        weights=None if full.weights is None else full.weights[:end],
        tail=full.tail[: length - 1],
        next_logprob=full.next_logprob[: length - 1],
        lognorm={t: values[: length - 1] for t, values in full.lognorm.items()},
        entropy=full.entropy[: length - 1],
        vocab_size=full.vocab_size,
    )
    prompt = None if record.prompt_length is None else min(record.prompt_length, length)
    return replace(
        record,
        input_ids=record.input_ids[:length],
        roles=record.roles[:length],
        prompt_length=prompt,
        logits=logits,
        attention=cut_attention(record.attention, length - 1) if record.attention else None,
    )


def summary(dataset: CacheDataset) -> Mapping[str, object]:
    """Counts of a dataset for reports, as JSON types."""
    return {
        "samples": len(dataset),
        "tokens": int(dataset.lengths.sum()),
        "trained_rows": dataset.trained,
        "truncated": dataset.truncated,
        "dropped": dict(dataset.dropped),
        "samples_digest": dataset.digest(),
    }


def _opened(caches: Cache | Location | Sequence[Cache | Location]) -> list[Cache]:
    if isinstance(caches, str | os.PathLike) or not isinstance(caches, Sequence):
        return [_open(caches)]
    if not caches:
        raise ConfigError("cache: expected at least one; found none")
    return [_open(item) for item in caches]


def _open(cache: Cache | Location) -> Cache:
    if not isinstance(cache, str | os.PathLike):
        return cache
    from cachekd.store.reader import open_cache

    return open_cache(os.fspath(cache), attention=False)


def _check_rows(caches: Sequence[Cache], loss_mask: LossMask) -> None:
    for cache in caches:
        if loss_mask is LossMask.ALL and cache.identity.capture.get("rows") == "response":
            raise _not_captured(cache, loss_mask)


def _not_captured(cache: Cache, loss_mask: LossMask) -> MismatchError:
    wanted = "all tokens" if loss_mask is LossMask.ALL else f"{loss_mask} tokens"
    return MismatchError(
        f"cache {cache.name!r} was captured with --rows response, but {wanted} are to be "
        "trained. Train on completions, or capture again with --rows all"
    )
