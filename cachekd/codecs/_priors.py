"""Priors: what a codec learned of a teacher, kept once in a cache and named by its shards.

A prior holds the mean distribution of the teacher (the unigram) and contexts: kinds of position,
each with the list of the tokens that are likely there, most likely first. A row is coded against
the context that makes it cheapest, as ranks in the context's list, so that a probable token is a
small number. Tokens outside the list are coded by their rank in the unigram.

A prior changes how targets are packed, never what they decode to. The unigram serves losses too,
as a model of the tail.

File, little-endian: 8 bytes ``CKDPRIOR``; uint32 version 1, V, contexts K, list length M; then one
zstd frame: V float16 natural logs of the unigram, K*M token ids as three byte planes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import zstandard
from numpy.typing import NDArray

from cachekd.codecs._frames import unpack_frame
from cachekd.data import limits
from cachekd.errors import CorruptCache
from cachekd.types import Float32, Int32, Int64, UInt8

_HEAD = struct.Struct("<8sIIII")
_MAGIC = b"CKDPRIOR"
_LEVEL = 9
_MASS_ERROR = 0.05  # of the unigram, whose logs are half floats
JUDGED = 32
"""Entries of a row that choose its context: more cost time and change little."""


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """A unigram, and lists of the tokens that are likely in each context.

    Attributes:
        log_unigram: natural logs, float16 [V].
        lists: token ids, int32 [K, M], each row without repeats; K may be 0.
        table: token id of a place, int32 [K*M + V]: the lists one after another, then all tokens
            by falling unigram (equal ones by id).
    """

    log_unigram: NDArray[np.float16]
    lists: Int32
    table: Int32 = field(init=False)
    _unigram_rank: Int32 = field(init=False)
    _costs: _Costs | None = field(init=False)

    def __post_init__(self) -> None:
        order = np.argsort(-self.log_unigram.astype(np.float32), kind="stable").astype(np.int32)
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        object.__setattr__(self, "table", np.concatenate([self.lists.ravel(), order]))
        object.__setattr__(self, "_unigram_rank", rank)
        object.__setattr__(self, "_costs", None)

    @property
    def contexts(self) -> int:
        """Number of contexts K."""
        return len(self.lists)

    @property
    def width(self) -> int:
        """Length M of a context's list."""
        return int(self.lists.shape[1])

    def unigram(self) -> Float32:
        """The unigram as probabilities, float32 [V], sum 1."""
        p = np.exp(self.log_unigram.astype(np.float64))
        unigram: Float32 = (p / p.sum()).astype(np.float32)
        return unigram

    def choose(self, offsets: Int64, ids: Int32) -> Int64:
        """The context of each row, int64 [R], by its first `JUDGED` entries."""
        if not self.contexts:
            return np.zeros(len(offsets) - 1, np.int64)
        return self._ready().choose(offsets, ids)

    def rank(self, contexts_n: Int64, ids: Int32) -> tuple[NDArray[np.bool_], Int64]:
        """Whether each entry is outside its context's list, and its rank.

        The rank is within the list, and in the unigram for those outside; bool [n], int64 [n].
        """
        unigram = self._unigram_rank[ids].astype(np.int64)
        if not self.contexts:
            return np.zeros(len(ids), np.bool_), unigram
        place = self._ready().places(contexts_n, ids)
        outside = place < 0
        return outside, np.where(outside, unigram, place)

    def _ready(self) -> _Costs:
        if self._costs is None:  # a reader never needs it
            object.__setattr__(self, "_costs", _Costs(self.lists, len(self.log_unigram)))
        costs = self._costs
        assert costs is not None
        return costs

    def dump(self) -> bytes:
        """Bytes of the prior's file."""
        ids = self.lists.astype("<u4").ravel().view(np.uint8).reshape(-1, 4)[:, :3]
        content = self.log_unigram.astype("<f2").tobytes() + np.ascontiguousarray(ids.T).tobytes()
        compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        head = _HEAD.pack(_MAGIC, 1, len(self.log_unigram), self.contexts, self.width)
        return head + compressor.compress(content)

    def __getstate__(self) -> tuple[NDArray[np.float16], Int32]:
        return self.log_unigram, self.lists

    def __setstate__(self, state: tuple[NDArray[np.float16], Int32]) -> None:
        object.__setattr__(self, "log_unigram", state[0])
        object.__setattr__(self, "lists", state[1])
        self.__post_init__()


class _Costs:
    """For an encoder: the place of a token in each list, and about how many bits it costs there."""

    def __init__(self, lists: Int32, vocab_size: int) -> None:
        contexts, width = lists.shape
        members = np.unique(lists)
        self._row = np.zeros(vocab_size, np.int32)  # 0: in no list
        self._row[members] = np.arange(1, len(members) + 1, dtype=np.int32)
        shape = (len(members) + 1, contexts)
        self._places = np.full(shape, -1, np.int16 if width < 1 << 15 else np.int32)
        self._eighths: UInt8 = np.full(shape, np.rint(8 * np.log2(2.0 * vocab_size)), np.uint8)
        place = np.arange(width)
        eighths = np.rint(8 * np.log2(place + 2.0))
        for context, tokens in enumerate(lists):
            self._places[self._row[tokens], context] = place
            self._eighths[self._row[tokens], context] = eighths

    def choose(self, offsets: Int64, ids: Int32) -> Int64:
        counts = np.minimum(np.diff(offsets), JUDGED)
        filled = np.flatnonzero(counts)
        chosen = np.zeros(len(counts), np.int64)
        step = max(1, (1 << 22) // (JUDGED * self._eighths.shape[1]))
        for start in range(0, len(filled), step):
            rows = filled[start : start + step]
            ends = np.cumsum(counts[rows])
            begins = ends - counts[rows]
            at = np.repeat(offsets[rows] - begins, counts[rows]) + np.arange(ends[-1])
            costs = np.add.reduceat(self._eighths[self._row[ids[at]]], begins, 0, np.uint16)
            chosen[rows] = costs.argmin(1)
        return chosen

    def places(self, contexts_n: Int64, ids: Int32) -> Int64:
        return self._places[self._row[ids], contexts_n].astype(np.int64)


def load_prior(name: str, data: bytes) -> Prior:
    """Parse a prior's file.

    Raises:
        CorruptCache: sizes or values are impossible.
    """
    try:
        magic, version, vocab, contexts, width = _HEAD.unpack_from(data)
    except struct.error as error:
        raise CorruptCache(f"{name}: too short for a prior") from error
    good = magic == _MAGIC and version == 1 and 1 <= vocab <= limits.VOCABULARY
    good = good and contexts <= limits.CONTEXTS and width <= vocab
    good = good and contexts * width <= limits.LISTED
    if not good or (contexts == 0) != (width == 0):
        raise CorruptCache(f"{name} is no prior of version 1, or was altered")
    size = 2 * vocab + 3 * contexts * width
    frame = data[_HEAD.size :]
    try:
        raw = unpack_frame(frame, size, size)
    except ValueError as error:
        raise CorruptCache(f"{name}: {error}") from error
    logs = np.frombuffer(raw, "<f2", vocab)
    low, middle, high = np.frombuffer(raw, np.uint8, offset=2 * vocab).reshape(3, -1)
    ids = low.astype(np.int32) | (middle.astype(np.int32) << 8) | (high.astype(np.int32) << 16)
    lists = ids.reshape(contexts, width)
    possible = np.isfinite(logs).all() and logs.max() <= _MASS_ERROR
    mass = np.exp(logs.astype(np.float64)).sum() if possible else 0.0
    if abs(mass - 1) > _MASS_ERROR or ids.max(initial=0) >= vocab:
        raise CorruptCache(f"{name} holds impossible values")
    if (np.diff(np.sort(lists, axis=1), axis=1) == 0).any():
        raise CorruptCache(f"{name}: a list holds a token twice")
    return Prior(logs, lists)
