"""Samples of a cache: many to one key. Their table, their ids, and their spans of roles.

Comes in: prepared samples. Goes out: Parquet bytes, and `SampleTable`, what a reader holds in
memory of all samples (about seventy bytes each; tokens and targets stay in the shards).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cachekd.data import limits
from cachekd.data.digests import sample_digest, sample_key
from cachekd.data.packed import Keys, Labels, Places, has_copies
from cachekd.errors import CorruptCache, DataError
from cachekd.store.tables import (
    SAMPLES,
    digests_column,
    flat_column,
    ints_or,
    list_column,
    numpy_of,
    read_table,
    whole_of,
    write_table,
)
from cachekd.types import Int32, Int64, Role, Sample, UInt8

SHARD_ROWS = 100_000


def sample_ids(samples: Sequence[Sample], keys: Keys) -> Keys:
    """Content id of each sample, on disk; equal rows are numbered as they come."""
    firsts = Keys.spooled(_id(sample, key, 0) for sample, key in zip(samples, keys, strict=True))
    if not has_copies(firsts):  # the common case, in a tenth of the time and half the memory
        return firsts
    copies = Places(firsts).copies()
    ids = firsts.array.copy()
    for i in map(int, np.flatnonzero(copies)):
        ids[i] = _id(samples[i], keys[i], int(copies[i]))
    return Keys(ids).spilled()


def _id(sample: Sample, key: bytes, copy: int) -> bytes:
    parts = (key, sample.roles, sample.prompt_length, sample.domain, sample.weight)
    return sample_digest(*parts, copy=copy)


def keys_of(samples: Iterable[Sample]) -> Keys:
    """Sample key of each sample."""
    return Keys.of(sample_key(sample.input_ids) for sample in samples)


def spans_of(roles: UInt8) -> tuple[UInt8, Int32]:
    """Runs of equal roles: the role of each and the index after its last token."""
    changes = np.flatnonzero(np.diff(roles)) + 1
    ends: Int32 = np.append(changes, len(roles)).astype(np.int32)
    return roles[ends - 1], ends


class _Columns:
    """Columns of a samples shard, appended sample by sample to flat arrays."""

    def __init__(self) -> None:
        self.lengths, self.prompts = array("i"), array("q")
        self.span_roles, self.span_ends, self.spans = bytearray(), array("i"), array("i", [0])
        self.weights, self.rows = array("d"), array("q")
        self.codes = {"domain": array("i"), "source": array("i")}
        self.names: dict[str, int] = {}

    def append(self, sample: Sample) -> None:
        roles, ends = spans_of(sample.roles)
        self.lengths.append(len(sample.input_ids))
        self.prompts.append(-1 if sample.prompt_length is None else sample.prompt_length)
        self.span_roles += roles.tobytes()
        self.span_ends.frombytes(ends.tobytes())
        self.spans.append(len(self.span_ends))
        self.weights.append(sample.weight)
        self.rows.append(sample.row)
        for name, text in (("domain", sample.domain), ("source", sample.source)):
            self.codes[name].append(self.names.setdefault(text, len(self.names)))

    def text(self, name: str) -> pa.Array:
        codes = flat_column(np.frombuffer(self.codes[name], np.int32), pa.int32())
        return pa.array(list(self.names), pa.string()).take(codes)


def write_samples(
    samples: Iterable[Sample],
    keys: Sequence[bytes],
    ids: Sequence[bytes],
    orders: Sequence[int] | NDArray[np.integer],
) -> pa.Buffer:
    """A samples shard as Parquet bytes; samples are looked at one at a time.

    Raises:
        DataError: it holds more text or spans than are read.
    """
    columns = _Columns()
    for sample in samples:
        columns.append(sample)
    prompts = np.frombuffer(columns.prompts, np.int64)
    spans = np.frombuffer(columns.spans, np.int32)
    table: dict[str, Any] = {
        "sample_id": digests_column(Keys.of(ids)),
        "key": digests_column(Keys.of(keys)),
        "n_tokens": flat_column(np.frombuffer(columns.lengths, np.int32), pa.int32()),
        "prompt_length": flat_column(prompts.astype(np.int32), pa.int32(), prompts >= 0),
        "span_roles": list_column(
            spans, np.frombuffer(columns.span_roles, np.uint8), SAMPLES.field("span_roles").type
        ),
        "span_ends": list_column(
            spans, np.frombuffer(columns.span_ends, np.int32), SAMPLES.field("span_ends").type
        ),
        "domain": columns.text("domain"),
        "weight": flat_column(np.frombuffer(columns.weights, np.float64), pa.float64()),
        "source": columns.text("source"),
        "source_row": flat_column(np.frombuffer(columns.rows, np.int64), pa.int64()),
        "order": flat_column(np.asarray(orders, dtype=np.int64), pa.int64()),
    }
    _refuse_large(table)
    return write_table(table, SAMPLES, {"cachekd": "samples"})


def _refuse_large(table: dict[str, Any]) -> None:
    rows = max(len(table["n_tokens"]), limits.SAMPLES_ROWS)
    text = table["domain"].nbytes + table["source"].nbytes
    spans = table["span_ends"].nbytes // 4
    if text > rows * limits.ROW_TEXT or spans > rows * limits.ROW_VALUES:
        raise DataError(
            f"{len(table['n_tokens'])} samples with {text} bytes of domains and sources and "
            f"{spans} role spans; at most {rows * limits.ROW_TEXT} and {rows * limits.ROW_VALUES} "
            "are read (cachekd limits). Use shorter domains and paths"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleTable:
    """All samples of a cache in index order, as flat arrays (P samples, S spans).

    Attributes:
        ids, keys: digests, packed [P].
        lengths: tokens, int32 [P].
        prompt_lengths: int32 [P], -1 where there is none.
        span_offsets: int64 [P+1] into ``span_roles`` uint8 [S] and ``span_ends`` int32 [S].
        domains: [P] numbers of few strings.
        weights: float64 [P].
        written: whether the teacher wrote the response, bool [P].
    """

    ids: Keys
    keys: Keys
    lengths: Int32
    prompt_lengths: Int32
    span_offsets: Int64
    span_roles: UInt8
    span_ends: Int32
    domains: Labels
    weights: NDArray[np.float64]
    written: NDArray[np.bool_]

    def roles(self, i: int) -> UInt8:
        """Role of each token of sample i, uint8 [L]."""
        part = slice(self.span_offsets[i], self.span_offsets[i + 1])
        widths = np.diff(self.span_ends[part], prepend=0)
        return np.repeat(self.span_roles[part], widths)

    def take(self, places: Sequence[int] | NDArray[np.integer]) -> SampleTable:
        """The samples at these places, in this order."""
        at = np.asarray(places, dtype=np.int64)
        counts = np.diff(self.span_offsets)[at]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        flat = np.arange(offsets[-1]) + np.repeat(self.span_offsets[at] - offsets[:-1], counts)
        return SampleTable(
            ids=self.ids.take(at),
            keys=self.keys.take(at),
            lengths=self.lengths[at],
            prompt_lengths=self.prompt_lengths[at],
            span_offsets=offsets,
            span_roles=self.span_roles[flat],
            span_ends=self.span_ends[flat],
            domains=self.domains.take(at),
            weights=self.weights[at],
            written=self.written[at],
        )


def read_samples(name: str, data: pa.Buffer, rows: int = limits.TABLE_ROWS) -> pa.Table:
    """A samples shard of at most so many rows, its values checked.

    Raises:
        CorruptCache: a value is impossible.
    """
    table = read_table(name, data, SAMPLES, rows)
    lengths = numpy_of(table["n_tokens"])
    spans = table["span_ends"].combine_chunks()
    counts = np.diff(numpy_of(spans.offsets))
    ends = numpy_of(spans.values)[spans.offsets[0].as_py() : spans.offsets[-1].as_py()]
    roles = table["span_roles"].combine_chunks()
    good = len(lengths) == 0 or (
        lengths.min() >= 2
        and lengths.max() <= limits.TOKENS
        and counts.min() >= 1
        and np.array_equal(counts, np.diff(numpy_of(roles.offsets)))
        and np.array_equal(ends[np.cumsum(counts) - 1], lengths)
        and _ascending(ends, counts)
        and numpy_of(roles.values).max(initial=0) <= max(Role)
        and _possible(table)
    )
    if not good:
        raise CorruptCache(f"{name}: lengths and role spans of its samples do not fit together")
    return table


def _possible(table: pa.Table) -> bool:
    """Whether prompts have a length, and weights are finite and not below 0."""
    prompts = ints_or(whole_of(table["prompt_length"]), 0)
    weights = numpy_of(table["weight"])
    return bool(
        ((prompts >= 0) & (prompts <= limits.TOKENS)).all()
        and (np.isfinite(weights) & (weights >= 0)).all()
    )


def _ascending(ends: Int32, counts: Int64) -> bool:
    """Whether the ends of each sample's spans grow, from above 0."""
    steps = np.diff(ends, prepend=0)
    firsts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    steps[firsts] = ends[firsts]
    return bool((steps > 0).all())
