"""The documents of a run: prepared samples with their keys, found by key without dictionaries.

Comes in: samples on their spool. Goes out: token ids, lengths, rows to capture and names of rows,
by key. All of it lies on disk, arrays that are searched are mapped from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from cachekd.data.alignment import LossMask, trained_rows
from cachekd.data.digests import sample_key
from cachekd.data.packed import Keys, Places
from cachekd.data.spool import SpooledSamples, spilled
from cachekd.errors import DataError
from cachekd.store.logits_rows import trained_of
from cachekd.store.samples import SampleTable, sample_ids
from cachekd.types import Int32, Int64, Sample, UInt8

Rows = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Documents:
    """Samples of a run by key; several may have one key.

    Attributes:
        samples: in the order of the data; by place where only some are at hand.
        keys, ids: sample key and content id of each sample [P].
        places: where each key stands.
        lengths: tokens of each sample [P].
        firsts: first sample of each key, ascending: the distinct documents.
    """

    samples: SpooledSamples | dict[int, Sample]
    keys: Keys
    ids: Keys
    places: Places
    lengths: Int64
    firsts: Int64

    def __getitem__(self, key: bytes) -> Int32:
        """Token ids of a key."""
        return self.last(key).input_ids

    def lengths_of(self, keys: Sequence[bytes]) -> Int64:
        """Tokens of each of these keys."""
        return self.lengths[self.places.find(Keys.of(keys))]

    def last(self, key: bytes) -> Sample:
        """The last sample of a key: the one that messages name."""
        return self.samples[int(self.places.all_of(key)[-1])]

    def names(self, keys: Sequence[bytes]) -> str:
        """Source and row of the first three of these keys, in the order of the data."""
        places = sorted(int(self.places.all_of(key)[-1]) for key in keys)[:3]
        samples = [self.samples[place] for place in places]
        return ", ".join(f"{sample.source} row {sample.row}" for sample in samples)


class ResponseRows:
    """Rows to capture by key: those that any sample of the key trains on."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    def __getitem__(self, key: bytes) -> Rows:
        """A mask over the rows of a key's document, bool [L-1]."""
        places = self._documents.places.all_of(key)
        samples = (self._documents.samples[int(place)] for place in places)
        return reduce(np.logical_or, (_rows(s.roles, s.prompt_length) for s in samples))


def documents_of(samples: SpooledSamples) -> Documents:
    """Samples with their keys and ids."""
    keys = Keys.spooled(sample_key(sample.input_ids) for sample in samples)
    ids = sample_ids(samples, keys)
    places = Places(keys, on_disk=True)
    return Documents(
        samples=samples,
        keys=keys,
        ids=ids,
        places=places,
        lengths=spilled(samples.lengths()),
        firsts=spilled(places.firsts()),
    )


def response_rows(documents: Documents, held: SampleTable | None, done: Places) -> ResponseRows:
    """Rows to capture by key.

    Args:
        documents: what is captured.
        held: samples of the cache, if there is one.
        done: keys whose targets are committed.

    Raises:
        DataError: a key is cached with fewer rows than the data wants now.
    """
    wanted = ResponseRows(documents)
    if held is None:
        return wanted
    cached = Places(held.keys)
    keys = documents.keys.take(documents.firsts)
    both = np.flatnonzero((done.find(keys) >= 0) & (cached.find(keys) >= 0))
    less = 0
    for key in keys.take(both):
        captured = reduce(np.logical_or, (trained_of(held, int(i)) for i in cached.all_of(key)))
        less += bool((wanted[key] & ~captured).any())
    if less:
        raise DataError(
            f"{less} documents are cached with targets for fewer rows than this data trains on "
            "(--rows or --attention-rows response, other roles). Use a new cache, with --rows all"
        )
    return wanted


def _rows(roles: UInt8, prompt_length: int | None) -> Rows:
    return trained_rows(roles, prompt_length, LossMask.AUTO)
