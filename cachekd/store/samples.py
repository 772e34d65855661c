"""Samples of a cache: many to one key. Their table, their ids, and their spans of roles.

Comes in: prepared samples. Goes out: Parquet bytes, and `SampleTable`, what a reader holds in
memory of all samples (about a hundred bytes each; tokens and targets stay in the shards).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cachekd.data.digests import sample_digest, sample_key
from cachekd.errors import CorruptCache
from cachekd.store.tables import SAMPLES, numpy_of, read_table, write_table
from cachekd.types import Int32, Int64, Role, Sample, UInt8

SHARD_ROWS = 100_000
_MAX_TOKENS = 1 << 28


def sample_ids(samples: Sequence[Sample], keys: Sequence[bytes]) -> list[bytes]:
    """Content id of each sample; equal rows are numbered as they come."""
    copies: Counter[bytes] = Counter()
    ids = []
    for sample, key in zip(samples, keys, strict=True):
        parts = (key, sample.roles, sample.prompt_length, sample.domain, sample.weight)
        first = sample_digest(*parts, copy=0)
        copy = copies[first]
        ids.append(sample_digest(*parts, copy=copy) if copy else first)
        copies[first] += 1
    return ids


def keys_of(samples: Iterable[Sample]) -> list[bytes]:
    """Sample key of each sample."""
    return [sample_key(sample.input_ids) for sample in samples]


def spans_of(roles: UInt8) -> tuple[UInt8, Int32]:
    """Runs of equal roles: the role of each and the index after its last token."""
    changes = np.flatnonzero(np.diff(roles)) + 1
    ends: Int32 = np.append(changes, len(roles)).astype(np.int32)
    return roles[ends - 1], ends


def write_samples(
    samples: Sequence[Sample], keys: Sequence[bytes], ids: Sequence[bytes], orders: Sequence[int]
) -> pa.Buffer:
    """A samples shard as Parquet bytes."""
    spans = [spans_of(sample.roles) for sample in samples]
    return write_table(
        {
            "sample_id": ids,
            "key": keys,
            "n_tokens": [len(sample.input_ids) for sample in samples],
            "prompt_length": [sample.prompt_length for sample in samples],
            "span_roles": [roles for roles, _ in spans],
            "span_ends": [ends for _, ends in spans],
            "domain": [sample.domain for sample in samples],
            "weight": [sample.weight for sample in samples],
            "source": [sample.source for sample in samples],
            "source_row": [sample.row for sample in samples],
            "order": orders,
        },
        SAMPLES,
        {"cachekd": "samples"},
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleTable:
    """All samples of a cache in index order, as flat arrays (P samples, S spans).

    Attributes:
        ids, keys: 16 bytes each, [P].
        lengths: tokens, int32 [P].
        prompt_lengths: int32 [P], -1 where there is none.
        span_offsets: int64 [P+1] into ``span_roles`` uint8 [S] and ``span_ends`` int32 [S].
        domains: [P] references to few strings.
        weights: float64 [P].
    """

    ids: list[bytes]
    keys: list[bytes]
    lengths: Int32
    prompt_lengths: Int32
    span_offsets: Int64
    span_roles: UInt8
    span_ends: Int32
    domains: list[str]
    weights: np.ndarray

    def roles(self, i: int) -> UInt8:
        """Role of each token of sample i, uint8 [L]."""
        part = slice(self.span_offsets[i], self.span_offsets[i + 1])
        widths = np.diff(self.span_ends[part], prepend=0)
        return np.repeat(self.span_roles[part], widths)

    def take(self, places: Sequence[int]) -> SampleTable:
        """The samples at these places, in this order."""
        spans = [slice(self.span_offsets[i], self.span_offsets[i + 1]) for i in places]
        counts = [span.stop - span.start for span in spans]
        flat_places = np.concatenate(
            [np.zeros(0, dtype=np.int64), *(np.arange(s.start, s.stop) for s in spans)]
        )
        return SampleTable(
            ids=[self.ids[i] for i in places],
            keys=[self.keys[i] for i in places],
            lengths=self.lengths[list(places)],
            prompt_lengths=self.prompt_lengths[list(places)],
            span_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            span_roles=self.span_roles[flat_places],
            span_ends=self.span_ends[flat_places],
            domains=[self.domains[i] for i in places],
            weights=self.weights[list(places)],
        )


def read_samples(name: str, data: pa.Buffer) -> pa.Table:
    """A samples shard, its values checked.

    Raises:
        CorruptCache: a value is impossible.
    """
    table = read_table(name, data, SAMPLES)
    lengths = numpy_of(table["n_tokens"])
    spans = table["span_ends"].combine_chunks()
    counts = np.diff(numpy_of(spans.offsets))
    ends = numpy_of(spans.values)[spans.offsets[0].as_py() : spans.offsets[-1].as_py()]
    roles = table["span_roles"].combine_chunks()
    good = len(lengths) == 0 or (
        lengths.min() >= 2
        and lengths.max() <= _MAX_TOKENS
        and counts.min() >= 1
        and np.array_equal(counts, np.diff(numpy_of(roles.offsets)))
        and np.array_equal(ends[np.cumsum(counts) - 1], lengths)
        and _ascending(ends, counts)
        and numpy_of(roles.values).max(initial=0) <= max(Role)
    )
    if not good:
        raise CorruptCache(f"{name}: lengths and role spans of its samples do not fit together")
    return table


def _ascending(ends: Int32, counts: Int64) -> bool:
    """Whether the ends of each sample's spans grow, from above 0."""
    steps = np.diff(ends, prepend=0)
    firsts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    steps[firsts] = ends[firsts]
    return bool((steps > 0).all())


def collect(tables: Sequence[pa.Table]) -> SampleTable:
    """Samples of several shards in the order given; a sample id that was met is left out."""
    table = pa.concat_tables(tables) if tables else SAMPLES.empty_table()
    seen: set[bytes] = set()
    keep = []
    for row, sample_id in enumerate(table["sample_id"].to_pylist()):
        if sample_id not in seen:
            seen.add(sample_id)
            keep.append(row)
    if len(keep) < table.num_rows:
        places = pa.py_buffer(np.array(keep, dtype=np.int64))
        table = table.take(pa.Array.from_buffers(pa.int64(), len(keep), [None, places]))
    table = table.combine_chunks()
    roles, ends = (_list_values(table[name]) for name in ("span_roles", "span_ends"))
    prompts = [-1 if p is None else p for p in table["prompt_length"].to_pylist()]
    return SampleTable(
        ids=table["sample_id"].to_pylist(),
        keys=table["key"].to_pylist(),
        lengths=numpy_of(table["n_tokens"]).astype(np.int32),
        prompt_lengths=np.array(prompts, dtype=np.int32),
        span_offsets=roles[0],
        span_roles=roles[1].astype(np.uint8),
        span_ends=ends[1].astype(np.int32),
        domains=table["domain"].dictionary_encode().to_pylist(),
        weights=numpy_of(table["weight"]),
    )


def _list_values(column: pa.ChunkedArray) -> tuple[Int64, np.ndarray]:
    """Offsets from 0 and flat values of a list column."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # an empty column keeps no chunk
        array = pa.array([], column.type)
    offsets = numpy_of(array.offsets).astype(np.int64)
    values = numpy_of(array.values)[offsets[0] : offsets[-1]]
    return offsets - offsets[0], values
