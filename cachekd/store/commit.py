"""A scored unit to the store: its shard, then the record that commits it.

Runs in the teacher's process or in a writer's: no torch.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cachekd.codecs import CodecHeader
from cachekd.codecs._priors import Prior
from cachekd.data.attention import AttentionSpec
from cachekd.store.attention_shards import AttentionFacts, EncodedAttention, write_attention
from cachekd.store.io import Location
from cachekd.store.layout import attention_name, shard_name, unit_name
from cachekd.store.shards import write_shard
from cachekd.store.skipped import Skipped
from cachekd.store.state import UnitRecord, is_committed
from cachekd.types import Int32, TopKLogits


@dataclass(frozen=True, slots=True, kw_only=True)
class Sink:
    """Where the units of a plan go, and how they are encoded.

    Attributes:
        url: the cache.
        plan: digest of the plan.
        capture_id: what is captured.
        header: how shards are encoded.
        attention, attention_id: what is kept of the attention, if any, and its capture id.
    """

    url: str
    plan: str
    capture_id: str
    header: CodecHeader
    attention: AttentionSpec | None = None
    attention_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredUnit:
    """All that is stored of a unit.

    Attributes:
        number: its place in the plan.
        keys: sample keys, in the plan's order.
        documents: token ids of each key.
        targets: what the teacher said of each document.
        attention: what is kept of the attention of each, or None.
        numerics: what the numbers depend on.
        seconds: how long it was scored.
        skipped: rows by key that the teacher gave no distribution of; they are empty.
    """

    number: int
    keys: tuple[bytes, ...]
    documents: Sequence[Int32]
    targets: Sequence[TopKLogits]
    attention: Sequence[EncodedAttention] | None = None
    numerics: Mapping[str, Any]
    seconds: float
    skipped: Skipped = field(default_factory=dict)


def write_unit(sink: Sink, location: Location, unit: ScoredUnit, prior: Prior | None) -> None:
    """Write the shards of a unit, packed with this prior, and then its record: now it exists.

    Raises:
        StoreError: a file cannot be written; says which and why.
    """
    started = time.monotonic()
    data, facts = write_shard(
        sink.header, sink.capture_id, unit.keys, unit.documents, unit.targets, prior
    )
    location.keep(shard_name(facts.digest), data, facts.digest)
    record = UnitRecord(
        plan=sink.plan,
        number=unit.number,
        shard=facts,
        attention=_write_attention(sink, location, unit),
        numerics=unit.numerics,
        skipped=unit.skipped,
    )
    commit_record(location, record, unit.keys, unit.seconds + time.monotonic() - started)


def _write_attention(sink: Sink, location: Location, unit: ScoredUnit) -> AttentionFacts | None:
    if unit.attention is None:
        return None
    assert sink.attention is not None and sink.attention_id is not None, "it was captured"
    data, facts = write_attention(
        sink.attention, sink.attention_id, unit.keys, unit.documents, unit.attention
    )
    location.keep(attention_name(facts.digest), data, facts.digest)
    return facts


def commit_record(
    location: Location, record: UnitRecord, keys: tuple[bytes, ...], seconds: float
) -> None:
    """Commit a unit whose shards are written.

    One that does not parse, or of which a file is lost, is written over.

    Args:
        location: the cache.
        record: the unit, and its shards.
        keys: sample keys, in the plan's order.
        seconds: that it took.

    Raises:
        StoreError: the file cannot be written.
    """
    made = {
        "host": platform.node(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
    }
    data = record.dump(keys, made)
    name = unit_name(record.plan, record.number)
    if not location.create(name, data) and not is_committed(location, record.plan, record.number):
        location.replace(name, data)
