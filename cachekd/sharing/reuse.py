"""Reuse: records that others have captured already, taken from a shared location.

Comes in: where caches are shared, an identity, the keys that are wanted, and the cache that they go
to. Goes out: a plan of that cache whose units are shards with these records, and how many they are.
A shard of which at least half is wanted comes whole, as the file that it is; of others the wanted
rows are put into one that is smaller. Where a capture is of response rows alone, a record comes if
it is known to have all rows that the run trains on, and none comes beside it that nobody asked for.
Where a cache was shared without text, rows get that of the run, which made the same keys of it. No
sample comes along: those are the run's own.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from cachekd.data.digests import bytes_digest, json_id
from cachekd.data.packed import Keys, Places
from cachekd.errors import CacheNotFound
from cachekd.sharing.catalogue import below, entries
from cachekd.sharing.choose import choose, samples_of
from cachekd.sharing.content import Content, part_of, sealed_content
from cachekd.sharing.copier import Copier, lacking
from cachekd.store.identity import Identity
from cachekd.store.identity_files import has_cache, write_identity
from cachekd.store.io import Location
from cachekd.store.layout import attention_name, plan_name, shard_name, unit_name
from cachekd.store.logits_rows import trained_of
from cachekd.store.plan import Plan, PlannedBatch, load_plan
from cachekd.store.rows import read_rows, write_rows
from cachekd.store.state import UnitRecord, load_unit, read_state
from cachekd.types import Int32

RowsOf = Callable[[bytes], NDArray[np.bool_]]
TextOf = Callable[[bytes], Int32]
_WHOLE = 0.5  # share of a shard's rows from which on it comes whole
_NEVER = 2.0
_JOBS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Reused:
    """What was taken.

    Attributes:
        records: wanted records that came.
        bytes: of the shards that were read for them.
        caches: where they came from.
    """

    records: int
    bytes: int
    caches: tuple[str, ...]


def caches_of(url: str, identity: Identity) -> list[Location]:
    """Sealed caches of an identity: that at a location, or those directly below it.

    Raises:
        CacheNotFound: there is no cache at all.
    """
    location = Location(url)
    if has_cache(location):
        own = sealed_content(location).identity
        return [location] if _ids(own) == _ids(identity) else []
    found, _ = entries(location)
    if not found:
        raise CacheNotFound(f"reuse: no sealed cache at {location.url}, nor directly below it")
    return [
        below(location, entry.folder)
        for entry in found
        if (entry.capture_id, entry.attention_id) == _ids(identity)
    ]


def reuse(
    url: str,
    identity: Identity,
    wanted: Keys,
    into: Location,
    text: TextOf,
    rows: RowsOf | None = None,
) -> Reused:
    """Take the records of these keys that caches of the same identity hold.

    Args:
        url: a cache, or the location above several.
        identity: of the run.
        wanted: keys that the cache does not hold.
        into: the cache; it is made if there is none.
        text: token ids of a wanted key, int32 [L].
        rows: what the run trains on of a key, bool [L-1], where the capture is of such rows alone:
            a record that may lack one is not taken. None: records have all rows.

    Raises:
        CacheNotFound: there is no cache at the location.
        CorruptCache: a shard there is altered; names it.
    """
    left = Keys(np.unique(wanted.array))
    taken = Reused(records=0, bytes=0, caches=())
    for place in caches_of(url, identity):
        if not len(left):
            break
        content = sealed_content(place)
        held = _held(content, identity, left, rows)
        if held.any():
            found = left.take(np.flatnonzero(held))
            size = _take(content, found, identity, into, text, 1.0 if rows else _WHOLE)
            taken = Reused(
                records=taken.records + len(found),
                bytes=taken.bytes + size,
                caches=(*taken.caches, place.url),
            )
            left = left.take(np.flatnonzero(~held))
    return taken


def _held(
    content: Content, identity: Identity, keys: Keys, rows: RowsOf | None
) -> NDArray[np.bool_]:
    """Whether a cache holds each of these keys, with these rows."""
    if _ids(content.identity) != _ids(identity):  # another cache came there meanwhile
        return np.zeros(len(keys), np.bool_)
    held = content.index().holds(keys)
    return held if rows is None else held & _with_rows(content, keys, rows)


def _with_rows(content: Content, keys: Keys, rows: RowsOf) -> NDArray[np.bool_]:
    """Whether the record of each key has these rows: those that samples there train on."""
    samples = samples_of(content)
    places = Places(samples.keys)
    found = np.zeros(len(keys), np.bool_)
    for number in np.flatnonzero(places.find(keys) >= 0):
        own = places.all_of(keys[int(number)])
        captured = reduce(np.logical_or, (trained_of(samples, int(place)) for place in own))
        found[number] = not (rows(keys[int(number)]) & ~captured).any()
    return found


def _take(
    content: Content, keys: Keys, identity: Identity, into: Location, text: TextOf, whole: float
) -> int:
    """Take records that a cache holds into another, as a plan of their own; bytes read."""
    copier = Copier(content.location, into, _JOBS)
    choice = choose(content, keys=keys)
    part = part_of(content, choice.shards, choice.told, copier.read_all)
    least = _NEVER if content.manifest.lacks_text() else whole
    index = content.index()
    held_by = np.array(index.shards)[index.shards_of(keys)]
    units, cut = [], []
    names = {name for name in part.blobs if name.startswith("priors/")}
    for record, there in _records(part, copier):
        wanted = Places(keys.take(np.flatnonzero(held_by == record.shard.digest))).find(there) >= 0
        if wanted.mean() >= least:
            units.append((record, there))
            names.update(record.files())
        else:
            cut.append((record, there.take(np.flatnonzero(wanted))))
    blobs = {name: part.blobs[name] for name in sorted(names)}
    copier.copy(lacking(into, blobs, frozenset(), copier))
    units += [_cut(content, record, wanted, text, into) for record, wanted in cut]
    write_identity(into, identity)
    state = read_state(into, skip_broken_units=True)
    sequence = 1 + max((plan.sequence for plan in state.plans.values()), default=0)
    plan = _plan(content, [own for _, own in units], sequence)
    digest, data = plan.dump()
    into.keep(plan_name(digest), data, digest)
    made = {"host": platform.node(), "at": datetime.now(UTC).isoformat(timespec="seconds")}
    for number, (record, own) in enumerate(units):
        again = UnitRecord(
            plan=digest,
            number=number,
            shard=record.shard,
            attention=record.attention,
            numerics={**record.numerics, "reused": content.manifest.root},
            skipped=record.skipped,
        )
        into.create(unit_name(digest, number), again.dump(tuple(own), made))
    return sum(content.manifest.shards[digest].bytes for digest in choice.shards)


def _records(part: Content, copier: Copier) -> Iterator[tuple[UnitRecord, Keys]]:
    """Commit records of a part, one a shard, with the keys of each."""
    documents = copier.read_all(part.documents)
    plans = {
        name.split("/")[1].removesuffix(".json"): load_plan(name, data)
        for name, data in documents.items()
        if name.startswith("plans/")
    }
    met = set()
    for name, data in sorted(documents.items()):
        if name.startswith("units/"):
            record = load_unit(name, data)
            if record.shard.digest not in met:
                met.add(record.shard.digest)
                yield record, plans[record.plan].packed_keys(record.number)


def _cut(
    content: Content, record: UnitRecord, wanted: Keys, text: TextOf, into: Location
) -> tuple[UnitRecord, Keys]:
    """Bring the wanted rows of a shard as one of their own; its record as it is then, its keys."""
    rows = read_rows(content.location, content.identity, record.shard, record.attention)
    cut = rows.take(np.flatnonzero(Places(wanted).find(rows.keys) >= 0)).with_text(text)
    data, facts, beside, own = write_rows(cut, content.identity)
    into.keep(shard_name(facts.digest), data, facts.digest)
    if beside is not None and own is not None:
        into.keep(attention_name(own.digest), beside, own.digest)
    kept = set(cut.keys)
    skipped = {key: found for key, found in record.skipped.items() if key in kept}
    return replace(record, shard=facts, attention=own, skipped=skipped), cut.keys


def _plan(content: Content, keys: list[Keys], sequence: int) -> Plan:
    """A plan whose units are these shards; it has no samples."""
    units, first = [], 0
    for own in keys:
        units.append((PlannedBatch(first, len(own), 2),))
        first += len(own)
    joined = Keys.joined(keys)
    digest = bytes_digest(joined.data)
    return Plan(
        run=json_id({"reused": content.manifest.root, "keys": digest}),
        capture_id=content.identity.capture_id,
        sequence=sequence,
        keys=joined,
        units=tuple(units),
        threads=1,
        samples=(),
        skipped={},
        changed={},
    )


def _ids(identity: Identity) -> tuple[str, str | None]:
    return identity.capture_id, identity.attention_id
