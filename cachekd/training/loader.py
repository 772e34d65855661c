"""Reading caches for training: a dataset of records.

In: opened caches (or their locations). Out: `Record`s cut to a length, one at a time or several for
a packed row. What stays in memory of a sample is packed, about a hundred bytes with its cache's.
Which samples there are is decided in `cachekd.training.choose`, their order in
`cachekd.training.order`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Dataset

from cachekd.data.alignment import LossMask
from cachekd.data.packed import Keys
from cachekd.errors import ConfigError
from cachekd.store.layout import shard_name
from cachekd.store.texts import Texts
from cachekd.training.checks import check_one_tokenizer
from cachekd.training.choose import Chosen, everything, mixed, of_data
from cachekd.training.cut import truncate
from cachekd.training.given import Location, opened
from cachekd.training.mixture import Mixture, any_of, mixed_logits, mixing
from cachekd.training.order import Filler, Index, Order
from cachekd.training.ranks import Words, digest_words, set_digest, words_of
from cachekd.training.route import EXPERT, routed
from cachekd.training.trained import skipped_counts, trained_counts
from cachekd.training.workers import Reading
from cachekd.types import Float32, Int32, Int64, Record

if TYPE_CHECKING:
    from cachekd.store.reader import Cache
    from cachekd.store.samples import SampleTable
    from cachekd.training.join import DataSamples


class CacheDataset(Dataset[Record | list[Record]]):
    """The samples of one or more caches that have something to train on.

    ``dataset[i]`` is a record; ``dataset[(i, j, k)]`` is the list of records of one packed row.

    Args:
        caches: an open cache or its location, or several. They must share one tokenizer.
        loss_mask: which rows are trained.
        max_length: records are cut to this many tokens.
        route: labels whose samples are read from the cache ``expert``, all others from
            ``reference``; without any label, the samples that have one. None: no routing.
        mixture: targets are a mixture of those of several caches.
        data: samples of a data file, which alone are given, as the file has them.
        on_missing: fail, or skip samples that are not in the caches that should hold them.
        order: what an `EpochSampler` makes of it.

    Attributes:
        lengths: tokens of each sample after cutting, int32.
        sample_ids: content id of each sample, packed.
        cache_numbers: place of the cache that each sample is read from, int32.
        truncated: samples that were cut.
        trained: rows that are trained, over all samples.
        skipped: rows that would be trained, were there a distribution of the teacher.
        dropped: samples left out, by reason.
        vocab_size: real vocabulary of the caches.
        reading: what loader workers read; see `cachekd.training.workers`.

    Raises:
        ConfigError: there is nothing to train on, or a name or weight is wrong.
        DataError: samples are not in the caches that should hold them.
        MismatchError: the caches have different tokenizers, or lack rows that would be trained.
    """

    def __init__(
        self,
        caches: Cache | Location | Sequence[Cache | Location],
        *,
        loss_mask: LossMask = LossMask.AUTO,
        max_length: int | None = None,
        route: Sequence[str] | None = None,
        mixture: Mixture | None = None,
        data: DataSamples | None = None,
        on_missing: str = "fail",
        order: Order | None = None,
    ) -> None:
        self.caches = opened(caches)
        self.loss_mask = loss_mask
        self.max_length = max_length
        self.order = order or Order()
        self.reading = Reading()
        check_one_tokenizer(self.caches)
        self._mixing = None if mixture is None else mixing(mixture, self.caches)
        self.order.check([cache.name for cache in self.caches], mixture=mixture is not None)
        self.vocab_size = int(self.caches[0].identity.source["vocab_size"])
        self._data = None if data is None else data.table
        if data is not None:
            for cache in self.caches:
                cache.texts = Texts(data.table.keys, data.samples)
        self._routed = route is not None
        self._choose(self._chosen(route, data, on_missing))
        self.dropped.update({} if data is None else data.left_out)

    def _chosen(
        self, route: Sequence[str] | None, data: DataSamples | None, on_missing: str
    ) -> Chosen:
        if self._mixing is not None:
            if route is not None:
                raise ConfigError("mixture: samples are routed by domain; leave the mixture out")
            return mixed(self.caches, self._mixing.members, data, on_missing)
        if route is not None:
            return routed(self.caches, route, data, on_missing)
        if data is not None:
            return of_data(self.caches, data, [None] * len(self.caches), on_missing)
        return everything(self.caches)

    def _choose(self, chosen: Chosen) -> None:
        """Keep what has a trained row, and count."""
        found = chosen.caches.size
        whole = (self.caches, chosen, self._data, self.loss_mask, self._limit)
        skipped = skipped_counts(*whole)
        counts = trained_counts(*whole) - skipped
        kept = chosen.take(np.flatnonzero(counts))
        self.dropped: Counter[str] = chosen.left_out
        if len(kept.caches) < found:
            self.dropped["no trained row"] += found - len(kept.caches)
        self.trained, self.skipped = int(counts.sum()), int(skipped.sum())
        self.cache_numbers, self._rows, self._of_data = kept.caches, kept.rows, kept.of_data
        lengths = np.zeros(len(self), np.int32)
        ids = np.empty(len(self), Keys.of([]).array.dtype)
        for number, cache in enumerate(self.caches):
            own = np.flatnonzero(self.cache_numbers == number)
            lengths[own] = cache.lengths[self._rows[0, own]]
            ids[own] = Keys.of(cache.sample_ids).array[self._rows[0, own]]
        if self._data is not None:
            ids = self._data.ids.array[self._of_data]
        self.sample_ids = Keys(ids)
        self.truncated = int((lengths > self._limit).sum())
        self.lengths: Int32 = np.minimum(lengths, self._limit).astype(np.int32)
        if not len(self):
            raise ConfigError(
                f"nothing to train on: of {sum(map(len, self.caches))} samples none is left; left "
                f"out: {dict(self.dropped)}. Check max_length and the loss mask ({self.loss_mask})"
            )

    def __len__(self) -> int:
        return len(self.cache_numbers)

    def __getitem__(self, index: Index) -> Record | list[Record]:
        return self.records(index) if isinstance(index, tuple) else self.record(index)

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
        with self.reading.noted(indices):
            return self._read(indices)

    def _read(self, indices: Sequence[int]) -> list[Record]:
        found: dict[int, Record] = {}
        for number, cache in enumerate(self.caches):
            own = [at for at, i in enumerate(indices) if self.cache_numbers[i] == number]
            whole = cache.read([int(self._rows[0, indices[at]]) for at in own])
            for at, record in zip(own, whole, strict=True):
                named = self._named(record, number, indices[at])
                found[at] = truncate(named, self._length(indices[at]))
        whole = [found[at] for at in range(len(indices))]
        return whole if self._mixing is None else self._mixed(whole, indices)

    def _mixed(self, firsts: list[Record], indices: Sequence[int]) -> list[Record]:
        """Records with their targets mixed with those of the other members."""
        assert self._mixing is not None
        parts = [[record.logits for record in firsts]]
        marks = [[record.skipped for record in firsts]]
        for member, number in enumerate(self._mixing.members[1:], 1):
            rows = [int(self._rows[member, i]) for i in indices]
            whole = self.caches[number].read(rows)
            own = [truncate(r, self._length(i)) for r, i in zip(whole, indices, strict=True)]
            parts.append([record.logits for record in own])
            marks.append([record.skipped for record in own])
        return [
            replace(
                record,
                attention=None,
                logits=mixed_logits(logits, self._mixing),
                skipped=any_of(skipped, logits[0].rows),
            )
            for record, logits, skipped in zip(
                firsts, zip(*parts, strict=True), zip(*marks, strict=True), strict=True
            )
        ]

    def _named(self, record: Record, number: int, index: int) -> Record:
        """A record with whose it is, if it is routed, and as the data file has it."""
        expert = self.caches[number].name == EXPERT if self._routed else None
        if self._data is None or self._of_data is None:
            return replace(record, expert=expert)
        table, at = self._data, int(self._of_data[index])
        prompt = int(table.prompt_lengths[at])
        return replace(
            record,
            expert=expert,
            sample_id=table.ids[at],
            roles=table.roles(at),
            prompt_length=None if prompt < 0 else prompt,
            domain=table.domains[at],
            weight=float(table.weights[at]),
        )

    def identities(self) -> Words:
        """What tells samples apart, [P, 2]: ids, and captures, which equal ids may differ in."""
        captures = [digest_words(cache.identity.capture_id) for cache in self.caches]
        return words_of(self.sample_ids) ^ np.stack(captures)[self.cache_numbers]

    def shards(self) -> tuple[list[str], Int64]:
        """Digests of all shards, and which of them each sample is in (of a mixture its first)."""
        names: dict[str, int] = {}
        numbers = np.empty(len(self), np.int64)
        for number, cache in enumerate(self.caches):
            own = np.flatnonzero(self.cache_numbers == number)
            digests, shard_P = cache.shards_of(self._rows[0, own])
            places = [names.setdefault(digest, len(names)) for digest in digests]
            numbers[own] = np.array(places, np.int64)[shard_P]
        return list(names), numbers

    def files_of(self, indices: Sequence[int]) -> list[str]:
        """Files that hold the targets of these samples."""
        names: dict[str, None] = {}
        chosen = np.array(indices, np.int64)
        for member, rows in enumerate(self._rows[:, chosen]):
            numbers = self.cache_numbers[chosen]
            if member and self._mixing is not None:
                numbers = np.full(len(chosen), self._mixing.members[member])
            for number in np.unique(numbers).tolist():
                cache = self.caches[number]
                digests, shard_P = cache.shards_of(rows[numbers == number])
                shards = np.unique(shard_P).tolist()
                names |= {f"{cache.url}/{shard_name(digests[i])}": None for i in shards}
        return list(names)

    def tables(self) -> Iterator[tuple[Int64, SampleTable]]:
        """Samples of each cache: their places, and all but their tokens."""
        for number, cache in enumerate(self.caches):
            own = np.flatnonzero(self.cache_numbers == number)
            table, at = cache.samples, self._rows[0]
            if self._data is not None and self._of_data is not None:
                table, at = self._data, self._of_data
            yield own, table.take(at[own])

    def unigram(self) -> Float32 | None:
        """The teacher's mean distribution [V]: of all caches that hold one, weighed alike.

        That of a mixture is weighed as the mixture is.
        """
        if self._mixing is not None:
            return self._mixing.unigram
        held = [u for u in (cache.unigram() for cache in self.caches) if u is not None]
        return np.mean(held, axis=0, dtype=np.float32) if held else None

    def digest(self) -> str:
        """Digest of the set of samples: equal sets train in equal order."""
        return set_digest(self.sample_ids)

    def _length(self, index: int) -> int:
        """Tokens of a sample that are read."""
        return 1 if isinstance(index, Filler) else self._limit

    @property
    def _limit(self) -> int:
        return self.max_length or int(np.iinfo(np.int32).max)


def summary(dataset: CacheDataset) -> Mapping[str, object]:
    """Counts of a dataset for reports, as JSON types."""
    numbers = np.bincount(dataset.cache_numbers, minlength=len(dataset.caches)).tolist()
    names = [cache.name for cache in dataset.caches]
    return {
        "samples": len(dataset),
        "samples_by_cache": dict(zip(names, numbers, strict=True)),
        "tokens": int(dataset.lengths.sum()),
        "trained_rows": dataset.trained,
        **({"skipped_rows": dataset.skipped} if dataset.skipped else {}),
        "truncated": dataset.truncated,
        "dropped": dict(dataset.dropped),
        "samples_digest": dataset.digest(),
    }
