"""Rows of shards as they are stored: taken out, put together anew, and never decoded.

Comes in: shards of logits, each with the attention of the same documents where that was captured.
Goes out: other shards that hold the same rows. Rows of shards that are encoded alike (one codec
header, one prior) may stand in one shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cachekd.codecs import CodecHeader
from cachekd.data.attention import AttentionSpec
from cachekd.data.digests import bytes_digest
from cachekd.data.packed import Keys
from cachekd.store.attention_shards import (
    AttentionFacts,
    AttentionShard,
    EncodedAttention,
    write_attention,
)
from cachekd.store.identity import Identity
from cachekd.store.io import Location
from cachekd.store.priors import Priors
from cachekd.store.shards import Shard, ShardFacts
from cachekd.store.tables import LOGITS, footer_bytes, numpy_of, packed_of, write_table
from cachekd.types import Int32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredRows:
    """Rows of one shard, or of several.

    Attributes:
        header: how the targets are encoded.
        table: the columns of a shard of logits.
        attention: the attention of each row's document; None where none was captured.
    """

    header: CodecHeader
    table: pa.Table
    attention: tuple[EncodedAttention, ...] | None

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def keys(self) -> Keys:
        """Key of each row."""
        return packed_of(self.table["key"].combine_chunks())

    def take(self, rows: NDArray[np.integer]) -> StoredRows:
        """The rows of these numbers, in this order."""
        beside = self.attention
        return replace(
            self,
            table=self.table.take(pa.array(np.asarray(rows).tolist(), pa.int64())),
            attention=None if beside is None else tuple(beside[int(row)] for row in rows),
        )

    def without_text(self) -> StoredRows:
        """The same rows without their token ids."""
        column = LOGITS.get_field_index("input_ids")
        nothing = pa.nulls(len(self), LOGITS.field("input_ids").type)
        return replace(self, table=self.table.set_column(column, LOGITS.field(column), nothing))

    def with_text(self, text_of: Callable[[bytes], Int32]) -> StoredRows:
        """The same rows; those without their token ids have what is given for their key."""
        column = self.table["input_ids"].combine_chunks()
        if not column.null_count:
            return self
        filled = pa.array(
            [
                numpy_of(ids.values) if ids.is_valid else text_of(key)
                for key, ids in zip(self.keys, column, strict=True)
            ],
            LOGITS.field("input_ids").type,
        )
        number = LOGITS.get_field_index("input_ids")
        return replace(self, table=self.table.set_column(number, LOGITS.field(number), filled))


def read_rows(
    location: Location,
    identity: Identity,
    facts: ShardFacts,
    attention: AttentionFacts | None,
    priors: Priors | None = None,
) -> StoredRows:
    """All rows of a shard, its bytes checked in whole; ``priors`` of the cache are read once.

    Raises:
        CorruptCache: a file is missing or altered; names it.
    """
    shard = Shard(location, facts, identity.capture_id, priors=priors)
    beside = None
    if attention is not None:
        assert identity.attention_id is not None, "a cache with shards of it"
        opened = AttentionShard(location, attention, identity.attention_id)
        beside = tuple(opened.encoded(row) for row in range(len(opened)))
    return StoredRows(header=shard.header, table=shard.table(), attention=beside)


def united(parts: Sequence[StoredRows]) -> StoredRows:
    """Rows of several shards that are encoded alike; of two with one key the first stays."""
    joined = StoredRows(
        header=parts[0].header,
        table=pa.concat_tables([part.table for part in parts]),
        attention=(
            None
            if parts[0].attention is None
            else tuple(one for part in parts for one in part.attention or ())
        ),
    )
    _, firsts = np.unique(joined.keys.array, return_index=True)
    return joined.take(firsts)


def write_rows(
    rows: StoredRows, identity: Identity
) -> tuple[pa.Buffer, ShardFacts, pa.Buffer | None, AttentionFacts | None]:
    """Bytes and facts of the shard of these rows, and of their attention."""
    keys = rows.keys.array
    if (keys[1:] < keys[:-1]).any():  # else a copy would only take room
        rows = rows.take(np.argsort(keys, kind="stable"))
    metadata = {
        "cachekd": "logits",
        "codec": rows.header.to_json(),
        "capture_id": identity.capture_id,
    }
    columns = {name: rows.table[name].combine_chunks() for name in LOGITS.names}
    data = write_table(columns, LOGITS, metadata)
    tokens = numpy_of(rows.table["n_tokens"])
    facts = ShardFacts(
        digest=bytes_digest(data),
        bytes=data.size,
        rows=len(rows),
        tokens=int(tokens.sum()),
        entries=int(numpy_of(rows.table["n_entries"]).sum()),
        footer=bytes_digest(footer_bytes(data)),
        prior=rows.header.prior,
    )
    if rows.attention is None:
        return data, facts, None, None
    assert identity.attention is not None, "a cache with shards of it"
    assert identity.attention_id is not None, "beside its facts"
    spec = AttentionSpec.from_json(identity.attention)
    documents = [np.zeros(int(length), np.int32) for length in tokens]  # only their lengths count
    beside, own = write_attention(
        spec, identity.attention_id, list(rows.keys), documents, rows.attention
    )
    return data, facts, beside, own
