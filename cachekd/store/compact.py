"""Compaction: many small shards become few, the same rows as they are stored; duplicates go.

Comes in: a cache and a size. Goes out: where it was sealed, a seal that names the united shards.
Shards that are encoded alike are united, whichever run made them, under a plan of their own; the
plans of those runs stay, so that their commands find all their records. A key is read as it was: of
rows that several shards hold, those that no reader sees are left behind. New shards come first,
then their records, then a seal without the old records, then these go: cut off anywhere, the cache
opens as before or after. Old shards stay for `cachekd.store.collect`: a reader may have them open.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from cachekd.data.digests import bytes_digest, json_id
from cachekd.data.packed import Keys
from cachekd.store.at_once import each_of
from cachekd.store.collect import remove_all
from cachekd.store.index import KeyIndex
from cachekd.store.io import Location
from cachekd.store.layout import attention_name, plan_name, shard_name, unit_name
from cachekd.store.manifest import load_seal
from cachekd.store.plan import Plan, PlannedBatch
from cachekd.store.priors import Priors
from cachekd.store.rows import StoredRows, read_rows, united, write_rows
from cachekd.store.seal import checked_content, newest_generation, publish
from cachekd.store.shards import ShardFacts
from cachekd.store.skipped import Skipped, in_force
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
    """Unite the small shards of a cache, beside which others may push to it.

    Args:
        location: the cache.
        target: bytes that shards are united to.
        dry_run: only tell.

    Raises:
        CorruptCache: a shard is missing or altered; names it. Nothing was taken away.
        StoreError: a file cannot be written.
    """
    # Looked at before the state: what a seal names that comes later was committed before.
    last = newest_generation(location)
    state = read_state(location)
    index = state.index()
    groups = _groups(state, index, target)
    before = state.shards()
    gone = {record.shard.digest for group in groups for _, record in group}
    told = Compacted(
        shards_before=len(before),
        shards_after=len(before) - len(gone) + len(groups),
        bytes_before=sum(facts.bytes for facts in before.values()),
        bytes_after=None,
        duplicates=sum(facts.rows for facts in before.values()) - len(index),
    )
    if dry_run:
        return told
    left = _put(location, state, index, groups, last) if groups else state
    after = left.shards()
    size = sum(facts.bytes for facts in after.values())
    return replace(told, shards_after=len(after), bytes_after=size)


def _groups(state: CacheState, index: KeyIndex, target: int) -> list[Group]:
    """Commit records of small shards that become one, at least two shards each.

    A shard stays as it is where a key is read from it that a shard which stays holds too: of the
    two that of the lower digest is read, and nobody knows that of the united one before.
    """
    instead = _read_instead(state, index)
    staying: set[str] = set()
    while True:
        groups = _alike(state, target, staying)
        gone = {record.shard.digest for group in groups for _, record in group}
        more = {one for digest, others in instead.items() if digest not in gone for one in others}
        if gone.isdisjoint(more):
            return groups
        staying |= more


def _read_instead(state: CacheState, index: KeyIndex) -> dict[str, set[str]]:
    """By shard those others that some of its keys are read from."""
    found: dict[str, set[str]] = {}
    for (plan, number), record in state.units.items():
        read = np.unique(index.shards_of(state.plans[plan].packed_keys(number)))
        others = {index.shards[int(shard)] for shard in read} - {record.shard.digest}
        if others:
            found[record.shard.digest] = others
    return found


def _alike(state: CacheState, target: int, staying: Collection[str]) -> list[Group]:
    alike: dict[str, list[tuple[UnitKey, UnitRecord]]] = {}
    for key, record in sorted(state.units.items(), key=lambda item: item[1].shard.digest):
        if record.shard.bytes * _SMALL <= target and record.shard.digest not in staying:
            alike.setdefault(str(record.shard.prior), []).append((key, record))
    groups = [group for records in alike.values() for group in _filled(records, target)]
    return [group for group in groups if len({record.shard.digest for _, record in group}) > 1]


def _filled(records: Sequence[tuple[UnitKey, UnitRecord]], target: int) -> Iterator[Group]:
    """Records of one shard follow one another, and come into one group."""
    group: list[tuple[UnitKey, UnitRecord]] = []
    size, last = 0, ""
    for item in records:
        shard = item[1].shard
        more = shard.bytes if shard.digest != last else 0
        if group and more and size + more > target:
            yield tuple(group)
            group, size = [], 0
        group.append(item)
        size, last = size + more, shard.digest
    if group:
        yield tuple(group)


def _put(
    location: Location, state: CacheState, index: KeyIndex, groups: Sequence[Group], last: int
) -> CacheState:
    """Put united shards in the place of those of the groups; the state then."""
    left, documents = _unite(location, state, index, groups)
    old = frozenset(unit_name(*key) for group in groups for key, _ in group)
    content, index_data = None, b""
    if last:  # what cannot be sealed is found out before anything is named
        content, index_data = checked_content(location, left, leave_out=True)
    mine = [location.create(name, data) for name, data in documents.items()]
    if content is not None and all(mine):
        publish(location, left.identity, content, index_data, after=last, replaced=old)
    _seal_without(location, old)
    remove_all(location, sorted(old))
    _seal_without(location, old)  # who had looked before that may have sealed since
    return left


def _seal_without(location: Location, old: Collection[str]) -> None:
    """Seal again, as long as the newest seal names old records: others may seal meanwhile.

    These records are not lost: those of the united shards stand for them.
    """
    while True:
        last = newest_generation(location)
        if not last or load_seal(location, last).files.keys().isdisjoint(old):
            return
        state = read_state(location)
        units = {key: own for key, own in state.units.items() if unit_name(*key) not in old}
        content, index_data = checked_content(location, replace(state, units=units), leave_out=True)
        publish(location, state.identity, content, index_data, after=last, replaced=old)


def _unite(
    location: Location, state: CacheState, index: KeyIndex, groups: Sequence[Group]
) -> tuple[CacheState, Mapping[str, bytes]]:
    """Write the united shards; the state with them, and their plan and records to be written."""
    let_go = in_force(state.skipped(), index)
    made = [one for group in groups for one in _written(location, state, index, let_go, group)]
    gone = {key for group in groups for key, _ in group}
    units = {key: record for key, record in state.units.items() if key not in gone}
    if not made:  # other shards hold all of it
        return replace(state, units=units), {}
    plan = _plan(state, [keys for keys, _ in made])
    digest, data = plan.dump()
    documents = {plan_name(digest): data}
    at = {"host": platform.node(), "at": datetime.now(UTC).isoformat(timespec="seconds")}
    for number, (keys, record) in enumerate(made):
        own = replace(record, plan=digest, number=number)
        data = documents[unit_name(digest, number)] = own.dump(tuple(keys), at)
        units[digest, number] = replace(own, file_digest=bytes_digest(data))
    plans = {**state.plans, digest: plan}
    ordered = sorted(plans.items(), key=lambda item: (item[1].sequence, item[0]))
    return replace(state, plans=dict(ordered), units=dict(sorted(units.items()))), documents


def _written(
    location: Location, state: CacheState, index: KeyIndex, let_go: Skipped, group: Group
) -> list[tuple[Keys, UnitRecord]]:
    """Write the shards of a group, one for each way in which its rows are encoded.

    Only their keys and records stay in memory; the records have no plan yet.
    """
    found = []
    numerics = {"compacted": len({record.shard.digest for _, record in group})}
    for rows in _united(location, state, index, group):
        data, facts, beside, own = write_rows(rows, state.identity)
        location.keep(shard_name(facts.digest), data, facts.digest)
        if beside is not None and own is not None:
            location.keep(attention_name(own.digest), beside, own.digest)
        keys = Keys(np.sort(rows.keys.array))
        record = UnitRecord(
            plan="",
            number=0,
            shard=facts,
            attention=own,
            numerics=numerics,
            skipped={key: let_go[key] for key in keys if key in let_go},
        )
        found.append((keys, record))
    return found


def _united(
    location: Location, state: CacheState, index: KeyIndex, group: Group
) -> list[StoredRows]:
    """Rows of the shards of a group that readers see, by the way in which they are encoded."""
    parts: dict[str, list[StoredRows]] = {}
    beside, priors = state.attention(), Priors(location)

    def read(facts: ShardFacts) -> StoredRows:
        return read_rows(location, state.identity, facts, beside.get(facts.digest), priors)

    shards = {record.shard.digest: record.shard for _, record in group}
    stored = each_of(read, shards.values(), at_once=not location.local)
    for digest, rows in zip(shards, stored, strict=True):
        seen = np.flatnonzero(index.shards_of(rows.keys) == bisect_left(index.shards, digest))
        if len(seen):
            rows = rows if len(seen) == len(rows) else rows.take(seen)
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
