"""Compaction: many small shards become few, the same rows as they are stored; duplicates go.

Comes in: a sealed cache and a size. Goes out: a seal that names the united shards. Shards that are
encoded alike are united, whichever run made them, under a plan of their own; the plans of those
runs stay, so that their commands find all their records. New shards and records come first, then a
seal without the old records, then these go: cut off anywhere, the cache opens as before or after.
Old shards stay for `cachekd.store.collect`: a reader may have them open.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from cachekd.data.digests import bytes_digest, json_id
from cachekd.data.packed import Keys
from cachekd.store.io import Location
from cachekd.store.layout import attention_name, plan_name, shard_name, unit_name
from cachekd.store.manifest import Manifest, read_manifest
from cachekd.store.plan import Plan, PlannedBatch
from cachekd.store.rows import StoredRows, read_rows, united, write_rows
from cachekd.store.seal import checked_content, newest_generation, publish
from cachekd.store.state import CacheState, UnitRecord, read_state

UnitKey = tuple[str, int]
Group = tuple[tuple[UnitKey, UnitRecord], ...]
_SMALL = 2  # a shard of at least 1 / 2 of the target stays as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """What was united, or would be.

    Attributes:
        shards_before, shards_after: shards of logits that the commit records name.
        bytes_before, bytes_after: of them; None after a dry run.
        duplicates: records of keys that another shard holds too.
    """

    shards_before: int
    shards_after: int
    bytes_before: int
    bytes_after: int | None
    duplicates: int


def compact(location: Location, target: int, *, dry_run: bool) -> Compacted:
    """Unite the small shards of a cache.

    Args:
        location: the cache; no other process writes it.
        target: bytes that shards are united to.
        dry_run: only tell.

    Raises:
        CorruptCache: a shard is missing or altered; names it. Nothing was taken away.
        StoreError: a file cannot be written.
    """
    state = read_state(location)
    groups = _groups(state, target)
    before = state.shards()
    size = sum(facts.bytes for facts in before.values())
    gone = {record.shard.digest for group in groups for _, record in group}
    duplicates = sum(facts.rows for facts in before.values()) - len(state.index())
    told = Compacted(
        shards_before=len(before),
        shards_after=len(before) - len(gone) + len(groups),
        bytes_before=size,
        bytes_after=None,
        duplicates=duplicates,
    )
    if dry_run or not groups:
        return told if dry_run else replace(told, bytes_after=size)
    left = _unite(location, state, groups)
    old = [unit_name(*key) for group in groups for key, _ in group]
    _seal_without(location, left, old)
    for name in old:
        location.remove(name)
    after = left.shards()
    size = sum(facts.bytes for facts in after.values())
    return replace(told, shards_after=len(after), bytes_after=size)


def _groups(state: CacheState, target: int) -> list[Group]:
    """Commit records of small shards that become one, at least two shards each."""
    alike: dict[str, list[tuple[UnitKey, UnitRecord]]] = {}
    for key, record in sorted(state.units.items(), key=lambda item: item[1].shard.digest):
        if record.shard.bytes * _SMALL <= target:
            alike.setdefault(str(record.shard.prior), []).append((key, record))
    groups = []
    for records in alike.values():
        groups += list(_filled(records, target))
    return [group for group in groups if len({record.shard.digest for _, record in group}) > 1]


def _filled(records: Sequence[tuple[UnitKey, UnitRecord]], target: int) -> Iterator[Group]:
    group: list[tuple[UnitKey, UnitRecord]] = []
    size = 0
    for item in records:
        if group and size + item[1].shard.bytes > target:
            yield tuple(group)
            group, size = [], 0
        group.append(item)
        size += item[1].shard.bytes
    if group:
        yield tuple(group)


def _unite(location: Location, state: CacheState, groups: Sequence[Group]) -> CacheState:
    """Write the united shards, their plan and its records; the state without the old records."""
    made = []
    for group in groups:
        made += [(part, group) for part in _united(location, state, group)]
    keys = [part.keys for part, _ in made]
    plan = _plan(state, keys)
    digest, data = plan.dump()
    written = []
    for number, (part, group) in enumerate(made):
        written.append(_write(location, state, digest, number, part, group))
    location.keep(plan_name(digest), data, digest)
    at = {"host": platform.node(), "at": datetime.now(UTC).isoformat(timespec="seconds")}
    for record, own in zip(written, keys, strict=True):
        location.create(unit_name(digest, record.number), record.dump(tuple(own), at))
    gone = {key for group in groups for key, _ in group}
    units = {key: record for key, record in state.units.items() if key not in gone}
    units |= {(digest, record.number): record for record in written}
    plans = {**state.plans, digest: plan}
    ordered = sorted(plans.items(), key=lambda item: (item[1].sequence, item[0]))
    return replace(state, plans=dict(ordered), units=dict(sorted(units.items())))


def _united(location: Location, state: CacheState, group: Group) -> list[StoredRows]:
    """Rows of the shards of a group: one part for each way in which they are encoded."""
    parts: dict[str, list[StoredRows]] = {}
    once = {record.shard.digest: record for _, record in group}
    beside = state.attention()
    for digest, record in sorted(once.items()):  # of two records of a key the lower digest's stays
        rows = read_rows(location, state.identity, record.shard, beside.get(digest))
        text = rows.table["input_ids"].null_count == 0
        parts.setdefault(f"{rows.header.to_json()} {text}", []).append(rows)
    return [united(own) for own in parts.values()]


def _plan(state: CacheState, keys: Sequence[Keys]) -> Plan:
    """The plan whose units are the united shards."""
    units, first = [], 0
    longest = max(b.padded_length for p in state.plans.values() for u in p.units for b in u)
    for own in keys:
        units.append((PlannedBatch(first, len(own), longest),))
        first += len(own)
    joined = Keys.joined(keys)
    return Plan(
        run=json_id({"compact": bytes_digest(joined.data)}),
        capture_id=state.identity.capture_id,
        sequence=1 + max(plan.sequence for plan in state.plans.values()),
        keys=joined,
        units=tuple(units),
        threads=1,
        samples=(),
        skipped={},
        changed={},
    )


def _write(
    location: Location, state: CacheState, plan: str, number: int, rows: StoredRows, group: Group
) -> UnitRecord:
    """Write a united shard; its record, which is not written yet."""
    data, facts, beside, own = write_rows(rows, state.identity)
    location.keep(shard_name(facts.digest), data, facts.digest)
    if beside is not None and own is not None:
        location.keep(attention_name(own.digest), beside, own.digest)
    skipped: dict[bytes, tuple[int, ...]] = {}
    held = set(rows.keys)
    for _, record in sorted(group, key=lambda item: item[1].shard.digest, reverse=True):
        skipped |= {key: found for key, found in record.skipped.items() if key in held}
    numerics = {"compacted": len({record.shard.digest for _, record in group})}
    return UnitRecord(
        plan=plan, number=number, shard=facts, attention=own, numerics=numerics, skipped=skipped
    )


def _seal_without(location: Location, left: CacheState, old: Sequence[str]) -> Manifest | None:
    """Seal what is left, where the cache is sealed; an unsealed one is as it was without a seal.

    Records of units that were united are not lost: those of the united shards stand for them.
    """
    if read_manifest(location) is None:
        return None
    last = newest_generation(location)
    content, index_data = checked_content(location, left, leave_out=True)
    sealed = publish(location, left.identity, content, index_data, after=last, replaced=old)
    assert sealed is not None, "no other process works on the cache"
    return sealed
