"""The packed codec: runs of equal codes, ids as gaps of ranks, one zstd frame a document.

Every entry has a code that does not fall along its row (see `cachekd.codecs._grids`; a sampled
entry's is above those of the head). The entries of a row with one code have no order among them;
so they are sorted by rank in the row's context (see `cachekd.codecs._priors`), those in the
context's list first, and only the gaps between ranks are kept. The coarser the levels, the longer
these runs, and the less an id costs. Streams (see `cachekd.codecs._streams`) of a document with R
rows, X runs and n entries:

    runs      [R]   runs of each row; 0: the row was not captured
    context   [R]   context of each row; no stream if the prior has none
    delta     [X]   2 * (code - code of the run before in the row, or 0) + (1 outside the list);
                    with tau 2 more, and of a run of sampled entries only (1 outside the list)
    length    [X]   entries of the run - 1
    gap       [n]   min(gap, 255): ranks skipped since the run's last entry, or since rank 0
    escape    [E]   gap - 255 of those that are 255
    scalars         see `cachekd.codecs._scalars`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cachekd.codecs import CodecHeader, Encoded
from cachekd.codecs._grids import Grid, scaled
from cachekd.codecs._priors import Prior
from cachekd.codecs._runs import SAMPLED, runs_of
from cachekd.codecs._scalars import pack_scalars, scalar_streams, unpack_scalars
from cachekd.codecs._streams import MAX_PLANES, Frame, Stream, pack
from cachekd.data import limits
from cachekd.errors import CorruptCache
from cachekd.types import Float32, Int32, Int64, TopKLogits

_ESCAPE = 255


class PackedCodec:
    """See the module's text for the layout.

    Args:
        header: what is packed.
        prior: the prior that the header names; without one, ranks are token ids.
    """

    uses_prior: ClassVar[bool] = True

    def __init__(self, header: CodecHeader, prior: Prior | None = None) -> None:
        if (header.prior is None) != (prior is None):
            raise CorruptCache(f"expected the prior {header.prior}; found {prior}")
        if header.vocab_size > limits.VOCABULARY:
            raise CorruptCache(f"vocabulary {header.vocab_size} does not fit 24-bit ids")
        if prior is not None and len(prior.log_unigram) != header.vocab_size:
            raise CorruptCache("the prior of a shard is of another vocabulary")
        self._header = header
        self._grid = Grid(header)
        self._prior = prior or Prior(
            np.zeros(header.vocab_size, np.float16), np.zeros((0, 0), np.int32)
        )

    def encode(self, targets: TopKLogits) -> bytes:
        """Bytes of one document's targets."""
        runs = runs_of(targets, self._header, self._prior)
        gaps = [np.minimum(runs.gaps, _ESCAPE), runs.gaps[runs.gaps >= _ESCAPE] - _ESCAPE]
        contexts = [runs.contexts] if self._prior.contexts else []
        scalars = pack_scalars(targets, self._header)
        return pack([runs.of_row, *contexts, runs.deltas, runs.lengths - 1, *gaps, *scalars])

    def decode(self, records: Sequence[Encoded]) -> list[TopKLogits]:
        """Targets of documents.

        Raises:
            CorruptCache: a frame is damaged, or its size or values do not fit the shape.
        """
        return self._decode(records, scale=True)

    def decode_unscaled(self, records: Sequence[Encoded]) -> list[TopKLogits]:
        """As `decode`, but levels without the scale of their row: what `encode` gives back."""
        return self._decode(records, scale=False)

    def _decode(self, records: Sequence[Encoded], *, scale: bool) -> list[TopKLogits]:
        if not records:
            return []
        parts = [self._unpack(*record) for record in records]
        streams = [np.concatenate([part.streams[i] for part in parts]) for i in range(6)]
        of_row, contexts, deltas, lengths, gaps, escapes = streams
        scalars = unpack_scalars([part.scalars for part in parts], self._header)
        runs = self._decode_runs(of_row, contexts, deltas, lengths, scalars[0] if scale else None)
        ids = self._ids(runs, gaps, escapes)
        logprobs = np.repeat(runs.logs, runs.counts)
        weights = None if runs.weights is None else np.repeat(runs.weights, runs.counts)
        return self._split(parts, runs.offsets, ids, logprobs, weights, scalars)

    def _unpack(self, data: bytes, rows: int, entries: int) -> _Part:
        header = self._header
        if entries > rows * header.vocab_size:
            raise CorruptCache(
                f"{entries} entries in {rows} rows; a vocabulary of {header.vocab_size} cannot "
                "have so many"
            )
        contexts = int(self._prior.contexts > 0)
        scalars = scalar_streams(header)
        count = 5 + contexts + scalars
        limit = count + MAX_PLANES * ((2 + scalars) * rows + 4 * entries)
        frame = Frame(data, count, limit)
        of_row = frame.take(rows)
        chosen = frame.take(rows) if contexts else np.zeros(rows, np.uint8)
        runs = int(of_row.sum(dtype=np.int64))
        if runs > entries:
            raise CorruptCache(f"a record of {entries} entries has {runs} runs")
        deltas, lengths = frame.take(runs), frame.take(runs)
        # Streams of zeros take no bytes: the runs must hold the entries before these are made.
        if int(lengths.sum(dtype=np.int64)) + runs != entries:
            raise CorruptCache("the runs of a record do not hold its entries")
        if lengths.max(initial=0) >= header.vocab_size:
            raise CorruptCache("a run of a record is longer than its vocabulary")
        gaps = frame.take(entries)
        if gaps.max(initial=0) > _ESCAPE:
            raise CorruptCache("a gap of a record does not fit a byte")
        escapes = frame.take(int(np.count_nonzero(gaps == _ESCAPE)))
        tail = [frame.take(rows) for _ in range(scalars)]
        frame.finish()
        if chosen.max(initial=0) > max(0, self._prior.contexts - 1):
            raise CorruptCache("a record names a context that its prior does not have")
        streams = (of_row, chosen, deltas, lengths, gaps, escapes)
        return _Part(rows=rows, entries=entries, streams=streams, scalars=tail)

    def _decode_runs(
        self,
        of_row: Stream,
        contexts: Stream,
        deltas: Stream,
        lengths: Stream,
        tail: Float32 | None,
    ) -> _Decoded:
        """What all entries of each run share."""
        of_row, deltas = of_row.astype(np.int64), deltas.astype(np.int64)
        counts = lengths.astype(np.int64) + 1
        ends = np.concatenate([[0], np.cumsum(of_row)])
        row_x = np.repeat(np.arange(len(of_row)), of_row)
        codes = self._codes_of_runs(deltas, of_row, ends)
        logs, weights = self._log_of_runs(codes, counts, row_x, tail)
        outside = (deltas & 1).astype(bool) | (self._prior.contexts == 0)
        width, inside = self._prior.width, self._prior.contexts * self._prior.width
        return _Decoded(
            offsets=np.append(0, np.cumsum(counts))[ends],
            counts=counts,
            logs=logs,
            weights=weights,
            base=np.where(outside, inside, contexts.astype(np.int64)[row_x] * width),
            size=np.where(outside, self._header.vocab_size, width),
        )

    def _codes_of_runs(self, deltas: Int64, of_row: Int64, ends: Int64) -> Int64:
        """The code of each run; sampled entries beside a head have no place on its grid."""
        steps, sampled = deltas, np.zeros(0, np.bool_)
        if self._header.tau:
            sampled = deltas < SAMPLED
            steps = np.where(sampled, 0, deltas - SAMPLED)
        codes = np.cumsum(steps >> 1)
        codes -= np.repeat(np.append(0, codes)[ends[:-1]], of_row)
        if self._header.tau:
            if (codes[~sampled] >= self._grid.sampled_code).any():
                raise CorruptCache("a record holds a value that its grid does not have")
            first = np.zeros(len(codes) + 1, np.bool_)
            first[ends] = True
            if (sampled[:-1] & ~sampled[1:] & ~first[1:-1]).any():
                raise CorruptCache("a record has sampled entries before those of the head")
            codes[sampled] = self._grid.sampled_code
        return codes

    def _log_of_runs(
        self, codes: Int64, counts: Int64, row_x: Int64, tail: Float32 | None
    ) -> tuple[Float32, Float32 | None]:
        """Log-probability of each run's entries, and their weight if anything is sampled."""
        header, grid = self._header, self._grid
        if header.samples:
            if codes.max(initial=0) >= header.samples:
                raise CorruptCache("a sampled entry of a record was never drawn")
            weights = ((header.samples - codes) / header.samples).astype(np.float32)
            return np.log(weights), weights
        sampled = codes == grid.sampled_code
        last = grid.sampled_code if header.tau else grid.sampled_code - 1
        if codes.max(initial=0) > last:
            raise CorruptCache("a record holds a value that its grid does not have")
        logs = grid.decode(np.where(sampled, 0, codes))
        if not grid.exact and tail is not None:
            logs = scaled(logs, codes, np.where(sampled, 0, counts), row_x, tail)
        if not header.tau:
            return logs, None
        logs = np.where(sampled, np.float32(np.log(header.tau)), logs)
        return logs, np.where(sampled, np.float32(header.tau), np.float32(0))

    def _ids(self, runs: _Decoded, gaps: Stream, escapes: Stream) -> Int32:
        """Token ids: one running sum over all gaps, set back to a run's base where it begins."""
        steps = gaps.astype(np.int32)
        if len(escapes):
            if escapes.max() >= self._header.vocab_size:  # so that no sum goes around
                raise CorruptCache("a gap of a record is wider than the vocabulary")
            steps[gaps == _ESCAPE] += escapes.astype(np.int32)
        if not len(steps):
            return np.zeros(0, np.int32)
        steps += 1
        starts = np.cumsum(runs.counts) - runs.counts
        sums = np.add.reduceat(steps, starts, dtype=np.int64)
        if (sums < 1).any() or (sums > runs.size).any():
            raise CorruptCache("a rank of a record is beyond its list")
        last = np.append(0, (runs.base + sums)[:-1])
        steps[starts] += (runs.base - last).astype(np.int32)
        return self._prior.table[np.cumsum(steps, dtype=np.int32) - 1]

    def _split(
        self,
        parts: list[_Part],
        offsets: Int64,
        ids: Int32,
        logprobs: Float32,
        weights: Float32 | None,
        scalars: Sequence[Float32],
    ) -> list[TopKLogits]:
        records, row, entry = [], 0, 0
        for part in parts:
            span = slice(entry, entry + part.entries)
            tail, next_logprob, entropy, *lognorm = (v[row : row + part.rows] for v in scalars)
            records.append(
                TopKLogits(
                    offsets=offsets[row : row + part.rows + 1] - entry,
                    ids=ids[span],
                    logprobs=logprobs[span],
                    weights=None if weights is None else weights[span],
                    tail=tail,
                    next_logprob=next_logprob,
                    entropy=entropy,
                    lognorm={1.0: np.zeros(part.rows, np.float32)}
                    | dict(zip(self._header.temperatures, lognorm, strict=True)),
                    vocab_size=self._header.vocab_size,
                )
            )
            row, entry = row + part.rows, span.stop
        return records


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """One record's streams."""

    rows: int
    entries: int
    streams: tuple[Stream, ...]
    scalars: Sequence[Stream]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Decoded:
    """Offsets [R+1] of rows; of runs [X]: entries, log-prob, weight, and their place in the table.

    The place is where ranks begin in the prior's table, and how many there are.
    """

    offsets: Int64
    counts: Int64
    logs: Float32
    weights: Float32 | None
    base: Int64
    size: Int64


PLUGIN = PackedCodec
