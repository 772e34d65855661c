"""What is committed in a cache: identity, plans, units and samples, as found on storage.

A unit exists if and only if its commit record does and parses. Start-up never lists shards to
find out the truth.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cachekd.data import limits, strict
from cachekd.data.digests import bytes_digest
from cachekd.data.packed import Keys
from cachekd.errors import CorruptCache
from cachekd.store.attention_shards import AttentionFacts
from cachekd.store.identity import Identity
from cachekd.store.identity_files import read_identity
from cachekd.store.index import KeyIndex, build_index
from cachekd.store.io import Location
from cachekd.store.layout import (
    ATTENTION,
    CACHE,
    KIND,
    attention_name,
    dump_document,
    load_document,
    most_bytes,
    plan_name,
    prior_name,
    shard_name,
    unit_name,
)
from cachekd.store.plan import Plan, load_plan
from cachekd.store.shards import ShardFacts
from cachekd.store.skipped import Skipped, dump_skipped, load_skipped

_UNIT = re.compile(r"([0-9a-f]{64})-([0-9]{1,9})\.json")
_PLAN = re.compile(r"([0-9a-f]{64})\.json")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRecord:
    """A commit record: shards that are whole, and how they were made.

    ``attention`` is the shard of the same documents' attention, where that is captured; ``skipped``
    are rows that the teacher gave no distribution of; ``file_digest`` is the sha256 of the record's
    file, where it was read from one.
    """

    plan: str
    number: int
    shard: ShardFacts
    numerics: Mapping[str, Any]
    attention: AttentionFacts | None = None
    skipped: Skipped = field(default_factory=dict)
    file_digest: str = field(default="", compare=False)

    def files(self) -> list[str]:
        """Files without which the unit cannot be read: its shards, and the prior of them."""
        names = [shard_name(self.shard.digest)]
        names += [attention_name(self.attention.digest)] if self.attention else []
        return names + ([prior_name(self.shard.prior)] if self.shard.prior else [])

    def dump(self, keys: tuple[bytes, ...], made: Mapping[str, Any]) -> bytes:
        """Bytes of the record's file; ``made`` tells host and time."""
        shards = {KIND: asdict(self.shard)}
        if self.attention:
            shards[ATTENTION] = asdict(self.attention)
        return dump_document(
            "unit",
            {
                "plan": self.plan,
                "unit": self.number,
                "shards": shards,
                "key_min": min(keys).hex(),
                "key_max": max(keys).hex(),
                "numerics": dict(self.numerics),
                **dump_skipped(self.skipped),
                "made": dict(made),
            },
        )


def load_unit(name: str, data: bytes) -> UnitRecord:
    """Parse a commit record (errors of `load_document`)."""
    document = load_document("unit", name, data)
    try:
        attention = document["shards"].get(ATTENTION)
        record = UnitRecord(
            plan=strict.digest(document["plan"]),
            number=strict.whole(document["unit"], limits.UNITS),
            shard=ShardFacts.from_json(document["shards"][KIND]),
            numerics=strict.fields(document["numerics"]),
            attention=AttentionFacts.from_json(attention) if attention is not None else None,
            skipped=load_skipped(document),
            file_digest=bytes_digest(data),
        )
    except (CorruptCache, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptCache(f"{name} is no commit record: {error!r:.300}") from error
    if unit_name(record.plan, record.number) != name:
        raise CorruptCache(f"{name} is the record of another unit; the file was moved")
    return record


def is_committed(location: Location, plan: str, number: int) -> bool:
    """Whether a unit's record parses and its files are there."""
    return committed(location, plan, number) is not None


def committed(location: Location, plan: str, number: int) -> UnitRecord | None:
    """A unit's record, if it parses and its files are there."""
    name = unit_name(plan, number)
    if not location.exists(name):
        return None
    try:
        record = load_unit(name, location.read(name, most_bytes("unit")))
    except CorruptCache:
        return None
    return record if all(map(location.exists, record.files())) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheState:
    """All that is committed in a cache.

    Attributes:
        plans: by digest, in the order they were made.
        units: commit records by (plan digest, number).
    """

    identity: Identity
    plans: Mapping[str, Plan]
    units: Mapping[tuple[str, int], UnitRecord]

    def missing_units(self, plan: str) -> list[int]:
        """Numbers of a plan's units that are not committed."""
        return [n for n in range(len(self.plans[plan].units)) if (plan, n) not in self.units]

    def done_keys(self) -> Keys:
        """Keys whose targets are committed."""
        return Keys.joined([self.plans[plan].packed_keys(n) for plan, n in self.units])

    def index(self) -> KeyIndex:
        """Where each key is; rows of a shard are sorted by key."""
        return build_index(
            {
                record.shard.digest: Keys(np.sort(self.plans[plan].packed_keys(n).array))
                for (plan, n), record in self.units.items()
            }
        )

    def shards(self) -> dict[str, ShardFacts]:
        """Facts of each committed shard, by digest, sorted."""
        facts = {record.shard.digest: record.shard for record in self.units.values()}
        return dict(sorted(facts.items()))

    def priors(self) -> list[str]:
        """Digests of the priors that committed shards need, sorted."""
        return sorted({facts.prior for facts in self.shards().values() if facts.prior})

    def attention(self) -> dict[str, AttentionFacts]:
        """Facts of each shard of attention, by the digest of the logits shard of its documents.

        Where one logits shard was committed with two, the lower digest is taken.
        """
        found: dict[str, AttentionFacts] = {}
        for record in self.units.values():
            other = found.get(record.shard.digest)
            if record.attention and (other is None or record.attention.digest < other.digest):
                found[record.shard.digest] = record.attention
        return dict(sorted(found.items()))

    def skipped(self) -> dict[str, Skipped]:
        """Rows that were let go, by shard."""
        found: dict[str, dict[bytes, tuple[int, ...]]] = {}
        for record in self.units.values():
            if record.skipped:
                found.setdefault(record.shard.digest, {}).update(record.skipped)
        return dict(sorted(found.items()))

    def samples(self) -> list[str]:
        """Digests of all samples shards, in plan order, each once."""
        return list(dict.fromkeys(name for plan in self.plans.values() for name in plan.samples))

    def written(self) -> frozenset[str]:
        """Digests of the samples shards whose responses the teacher wrote."""
        plans = (plan for plan in self.plans.values() if plan.responses is not None)
        return frozenset(name for plan in plans for name in plan.samples)


def read_state(location: Location, *, skip_broken_units: bool = False) -> CacheState:
    """Scan a cache.

    Args:
        location: where it is.
        skip_broken_units: treat a plan or a unit's record that does not parse, and a unit of which
            a file is missing, as not there (a writer makes it anew); a reader must not, or it
            would lose records in silence.

    Raises:
        CacheNotFound: there is no cache.
        CorruptCache: a document does not parse.
    """
    identity = read_identity(location)
    plans = {}
    for name in location.names("plans"):
        match = _PLAN.fullmatch(name)
        if match:
            path = plan_name(match[1])
            try:
                plan = load_plan(path, location.read(path, most_bytes("plan")))
            except CorruptCache as error:
                if not skip_broken_units:
                    raise
                _log.warning("%s; it is made anew by the command of its run", error)
                continue
            if plan.capture_id == identity.capture_id:
                plans[match[1]] = plan
    units = read_units(location, identity, plans, skip_broken=skip_broken_units)
    ordered = sorted(plans.items(), key=lambda item: (item[1].sequence, item[0]))
    return CacheState(identity=identity, plans=dict(ordered), units=units)


def read_units(
    location: Location, identity: Identity, plans: Mapping[str, Plan], *, skip_broken: bool
) -> dict[tuple[str, int], UnitRecord]:
    """Commit records of these plans, sorted (see `read_state`)."""
    matches = {name: _UNIT.fullmatch(name) for name in location.names("units")}
    own = [name for name, match in matches.items() if match and match[1] in plans]
    units, listed, lost = {}, dict[str, frozenset[str]](), dict[str, list[str]]()
    for name, record in _records(location, own, skip_broken):
        if (record.attention is None) != (identity.attention is None):
            raise CorruptCache(f"units/{name} commits other kinds of target than {CACHE} says")
        missing = _missing(location, record, listed) if skip_broken else []
        if missing:
            lost.setdefault(missing[0], []).append(name)
            continue
        if record.number < len(plans[record.plan].units):
            units[record.plan, record.number] = record
    for file, own in lost.items():
        more = f" and {len(own) - 1} more" if len(own) > 1 else ""
        text = "%s is missing; what needs it is made anew: units/%s%s"
        _log.warning(text, location.path(file), own[0], more)
    return dict(sorted(units.items()))


def _records(
    location: Location, names: list[str], skip_broken: bool
) -> Iterator[tuple[str, UnitRecord]]:
    """Commit records of these names."""
    if not names:
        return
    with location.reader("units", names, most_bytes("unit")) as read:
        for name in names:
            try:
                yield name, load_unit(f"units/{name}", read(name))
            except CorruptCache as error:
                if not skip_broken:
                    raise
                _log.warning("%s; the unit is made anew", error)


def _missing(
    location: Location, record: UnitRecord, listed: dict[str, frozenset[str]]
) -> list[str]:
    """Files of a unit that are not there; a folder is listed once, after all records were."""
    missing = []
    for name in record.files():
        folder, _, base = name.partition("/")
        if folder not in listed:
            listed[folder] = frozenset(location.names(folder))
        if base not in listed[folder]:
            missing.append(name)
    return missing
