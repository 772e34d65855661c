"""Shards of logits: records to Parquet bytes and back, and the lookup of a key.

A shard holds one row a key, sorted by key, so that its bytes depend on its records alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cachekd.codecs import Codec, CodecHeader, Encoded
from cachekd.codecs._priors import Prior
from cachekd.data import limits, strict
from cachekd.data.digests import bytes_digest, sample_key
from cachekd.errors import CorruptCache, TeacherError
from cachekd.plugins import find
from cachekd.store.io import Location
from cachekd.store.layout import shard_name
from cachekd.store.names import altered
from cachekd.store.priors import Priors
from cachekd.store.tables import (
    LOGITS,
    footer_bytes,
    numpy_of,
    open_table,
    read_group,
    write_table,
)
from cachekd.store.texts import NO_TEXT, no_text
from cachekd.types import Int32, TopKLogits

_GROUP_BYTES_HELD = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFacts:
    """What a commit record and a seal say of a shard; names it by its sha256."""

    digest: str
    bytes: int
    rows: int
    tokens: int
    entries: int
    footer: str
    prior: str | None = None

    @classmethod
    def from_json(cls, value: Any) -> ShardFacts:
        """From a JSON document; further fields are not looked at.

        Raises:
            CorruptCache: fields are missing, of another type, or impossible.
        """
        try:
            rows = strict.whole(value["rows"], limits.TABLE_ROWS, 1)
            tokens = strict.whole(value["tokens"], rows * limits.TOKENS, 2 * rows)
            return cls(
                digest=strict.digest(value["digest"]),
                bytes=strict.whole(value["bytes"], limits.SHARD_BYTES),
                rows=rows,
                tokens=tokens,
                entries=strict.whole(value["entries"], rows * limits.ENTRIES),
                footer=strict.digest(value["footer"]),
                prior=None if value["prior"] is None else strict.digest(value["prior"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptCache(f"facts of a shard cannot be read: {error!r:.300}") from error


def write_shard(
    header: CodecHeader,
    capture_id: str,
    keys: Sequence[bytes],
    documents: Sequence[Int32],
    targets: Sequence[TopKLogits],
    prior: Prior | None = None,
) -> tuple[pa.Buffer, ShardFacts]:
    """The bytes of a shard and what is said of it; ``prior`` is the one that the header names."""
    codec: Codec = find("codecs", header.codec)(header, prior)
    _refuse_large(documents, targets)
    order = sorted(range(len(keys)), key=lambda i: keys[i])
    data = write_table(
        {
            "key": [keys[i] for i in order],
            "n_tokens": [len(documents[i]) for i in order],
            "n_entries": [len(targets[i].ids) for i in order],
            "input_ids": [None if documents[i][0] == NO_TEXT else documents[i] for i in order],
            "targets": [codec.encode(targets[i]) for i in order],
        },
        LOGITS,
        {"cachekd": "logits", "codec": header.to_json(), "capture_id": capture_id},
    )
    return data, ShardFacts(
        digest=bytes_digest(data),
        bytes=data.size,
        rows=len(keys),
        tokens=sum(map(len, documents)),
        entries=sum(len(target.ids) for target in targets),
        footer=bytes_digest(footer_bytes(data)),
        prior=header.prior,
    )


def _refuse_large(documents: Sequence[Int32], targets: Sequence[TopKLogits]) -> None:
    tokens = max(map(len, documents), default=0)
    entries = max((len(target.ids) for target in targets), default=0)
    if tokens > limits.TOKENS or entries > limits.ENTRIES:
        raise TeacherError(
            f"a document of {tokens} tokens and {entries} kept entries; at most {limits.TOKENS} "
            f"and {limits.ENTRIES} are read (cachekd limits). Use --max-length, or keep fewer "
            "entries"
        )


class Groups:
    """Row groups read last, of any number of shards, up to a number of bytes."""

    def __init__(self, limit: int = _GROUP_BYTES_HELD) -> None:
        self._limit = limit
        self._bytes = 0
        self._held: OrderedDict[tuple[str, int], pa.RecordBatch] = OrderedDict()

    def get(self, place: tuple[str, int], read: Callable[[], pa.RecordBatch]) -> pa.RecordBatch:
        """The group of this shard and number, read if it is not held."""
        if place in self._held:
            self._held.move_to_end(place)
            return self._held[place]
        batch = read()
        self._held[place] = batch
        self._bytes += batch.nbytes
        while self._bytes > self._limit and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        return batch


class Shard:
    """An open shard; its bytes are checked in whole when it is opened.

    Args:
        location: the cache.
        facts: what the commit record or the seal says of it.
        capture_id: capture that it must hold.
        groups: where its row groups are held; several shards may share one.
        priors: the cache's priors; several shards may share them.

    Raises:
        CorruptCache: missing, altered, of another capture, or not decodable; names the file.
    """

    def __init__(
        self,
        location: Location,
        facts: ShardFacts,
        capture_id: str,
        groups: Groups | None = None,
        priors: Priors | None = None,
    ) -> None:
        self.name = shard_name(facts.digest)
        self._path = location.path(self.name)
        data = location.checked(self.name, facts.digest, facts.bytes)
        self._table = open_table(self._path, data, LOGITS, rows=facts.rows, values=facts.tokens)
        metadata: Mapping[bytes, bytes] = self._table.schema.metadata or {}
        if metadata.get(b"capture_id") != capture_id.encode():
            raise self._corrupt(f"it holds another capture than {capture_id}")
        self.header = CodecHeader.from_json(metadata.get(b"codec", b""))
        if self.header.prior != facts.prior:
            raise self._corrupt(f"expected prior {facts.prior}, found {self.header.prior}")
        prior = (priors or Priors(location)).get(facts.prior) if facts.prior else None
        self._codec: Codec = find("codecs", self.header.codec)(self.header, prior)
        ends = np.cumsum(self._table.rows, dtype=np.int64)
        self._starts = np.concatenate([[0], ends]).astype(np.int64)
        if self._starts[-1] != facts.rows:
            raise self._corrupt(f"expected {facts.rows} rows, found {self._starts[-1]}")
        self._digest = facts.digest
        self._groups = groups or Groups()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def keys(self) -> list[bytes]:
        """All keys, in row order."""
        try:
            keys: list[bytes] = self._table.file.read(columns=["key"])["key"].to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise self._corrupt(str(error)) from error
        return keys

    def table(self) -> pa.Table:
        """All rows as they are stored, not decoded."""
        groups = [read_group(self._table, group) for group in range(len(self._table.rows))]
        return pa.Table.from_batches(groups).replace_schema_metadata(None)

    def record(self, row: int) -> tuple[bytes, Int32, TopKLogits]:
        """Key, token ids and targets of a row."""
        return self.records([row])[0]

    def records(
        self, rows: Sequence[int], *, scaled: bool = True
    ) -> list[tuple[bytes, Int32, TopKLogits]]:
        """Key, token ids and targets of rows; many at once cost less than one by one.

        Args:
            rows: row numbers.
            scaled: False leaves levels as an encoder gives them back exactly.
        """
        stored = [self._stored(row) for row in rows]
        decode = self._codec.decode if scaled else self._codec.decode_unscaled
        try:
            targets = decode([encoded for _, _, encoded in stored])
        except CorruptCache as error:
            raise self._corrupt(f"rows {rows[0]} to {rows[-1]}: {error}") from error
        return [(key, ids, t) for (key, ids, _), t in zip(stored, targets, strict=True)]

    def _stored(self, row: int) -> tuple[bytes, Int32, Encoded]:
        if not 0 <= row < len(self):
            raise self._corrupt(f"row {row} is asked for; it has {len(self)}")
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        batch = self._group(group)
        place = row - int(self._starts[group])
        key: bytes = batch.column(0)[place].as_py()
        tokens = batch.column(1)[place].as_py()
        entries = batch.column(2)[place].as_py()
        if not 2 <= tokens <= limits.TOKENS:
            raise self._corrupt(f"row {row}: {tokens} tokens cannot be")
        values = batch.column(3)[place].values
        input_ids = no_text(tokens) if values is None else numpy_of(values)
        if not 2 <= tokens == len(input_ids) <= limits.TOKENS:
            raise self._corrupt(f"row {row}: counts do not fit its token ids")
        if not 0 <= entries <= limits.ENTRIES:
            raise self._corrupt(f"row {row}: {entries} entries cannot be")
        least = 0 if values is not None else NO_TEXT
        if input_ids.min() < least or input_ids.max() >= self.header.vocab_size:
            raise self._corrupt(f"row {row}: token ids outside the vocabulary")
        return key, input_ids, (batch.column(4)[place].as_buffer(), tokens - 1, entries)

    def check_record(self, row: int) -> tuple[int, int]:
        """Decode a row and check its law: key, order of the head, mass. Tokens and entries.

        Raises:
            CorruptCache: says what is wrong.
        """
        key, input_ids, targets = self.record(row)
        if input_ids[0] != NO_TEXT and key != sample_key(input_ids):
            raise self._corrupt(f"row {row}: its key is not the digest of its token ids")
        problem = impossible(targets)
        if problem:
            raise self._corrupt(f"row {row}: {problem}")
        return len(input_ids), len(targets.ids)

    def _group(self, group: int) -> pa.RecordBatch:
        return self._groups.get((self._digest, group), lambda: read_group(self._table, group))

    def _corrupt(self, what: str) -> CorruptCache:
        return altered(self._path, what)


def impossible(targets: TopKLogits) -> str | None:
    """Why decoded targets cannot be a distribution each row, or None.

    Log-probs are at most 0, those of the head fall; no value is NaN; no token stands twice; head
    and tail have mass 1 (to the precision of half floats, whose error grows with the entries).
    """
    counts = np.diff(targets.offsets)
    scalars = [targets.tail, targets.next_logprob, targets.entropy, *targets.lognorm.values()]
    if any(np.isnan(values).any() for values in (targets.logprobs, *scalars)):
        return "a value is NaN"
    if (targets.logprobs > 0).any() or (targets.tail > 1e-4).any():
        return "a log-probability is above 0"
    row_n = np.repeat(np.arange(len(counts)), counts)
    in_head = np.ones(len(row_n), bool) if targets.weights is None else targets.weights == 0
    falls = np.diff(targets.logprobs) <= 0
    if not falls[(row_n[1:] == row_n[:-1]) & in_head[1:] & in_head[:-1]].all():
        return "head entries are not in falling order"
    if len(np.unique(row_n * targets.vocab_size + targets.ids)) != len(row_n):
        return "a token id stands twice in a row"
    head = np.bincount(row_n, in_head * np.exp(targets.logprobs.astype(np.float64)), len(counts))
    mass = (head + np.exp(targets.tail.astype(np.float64)))[counts > 0]
    if (np.abs(mass - 1) > 0.02).any():
        return "head and tail of a row do not add up to mass 1"
    return None
