"""Plans and commit records as they lie in a cache, read without trust: what parses, what does not.

Comes in: a location, its identity, and perhaps the names that a seal gives. Goes out: the plans and
records that are good, and a problem for each that is not. `cachekd.store.state` reads the same for
those who cannot go on with damage.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cachekd.data.digests import bytes_digest
from cachekd.errors import CorruptCache, StoreError
from cachekd.store.identity import Identity
from cachekd.store.io import Location
from cachekd.store.layout import load_document, plan_name, samples_name
from cachekd.store.plan import Plan, load_plan
from cachekd.store.problems import Problem, problem_of, spelling_problem
from cachekd.store.state import CacheState, UnitRecord, load_unit

UnitKey = tuple[str, int]
_FILE = re.compile(r"(?:plans/([0-9a-f]{64})|units/([0-9a-f]{64})-([0-9]{1,9}))\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What is committed, as far as it is whole.

    Attributes:
        state: good plans in their order, and good commit records of these.
        orphans: good commit records whose plan is lost.
        damaged: units whose record is damaged.
        digests: sha256 of each file that was read, by name.
        problems: what is wrong with the others.
    """

    state: CacheState
    orphans: Mapping[UnitKey, UnitRecord]
    damaged: frozenset[UnitKey]
    digests: Mapping[str, str]
    problems: tuple[Problem, ...]

    def records(self) -> dict[UnitKey, UnitRecord]:
        """All good commit records."""
        return {**self.state.units, **self.orphans}


def unit_of(file: str) -> UnitKey | None:
    """The unit whose commit record has this name, if it is one's."""
    match = _FILE.fullmatch(file)
    return (match[2], int(match[3])) if match and match[2] else None


def plan_of(file: str) -> str | None:
    """The plan that has this name, if it is one's."""
    match = _FILE.fullmatch(file)
    return match[1] if match else None


def without_samples(state: CacheState, files: Collection[str]) -> CacheState:
    """The same without these samples shards, given by name."""
    plans = {
        digest: replace(
            plan, samples=tuple(s for s in plan.samples if samples_name(s) not in files)
        )
        for digest, plan in state.plans.items()
    }
    return replace(state, plans=plans)


def read_committed(
    location: Location, identity: Identity, named: Mapping[str, str] | None = None
) -> Committed:
    """Read all plans and commit records, or those that a seal names with their sha256."""
    reader = _Reader(location, identity, named)
    files = list(_all_files(location)) if named is None else list(named)
    plans = {p: plan for file in files if (p := plan_of(file)) and (plan := reader.plan(file, p))}
    units: dict[UnitKey, UnitRecord] = {}
    orphans: dict[UnitKey, UnitRecord] = {}
    damaged = set()
    for file in files:
        key = unit_of(file)
        if key is None:
            continue
        record = reader.unit(file, key, plans.get(key[0]))
        if record is None:
            damaged.add(key)
        else:
            (units if key[0] in plans else orphans)[key] = record
    reader.report_lost_plans(key[0] for key in orphans)
    ordered = sorted(plans.items(), key=lambda item: (item[1].sequence, item[0]))
    state = CacheState(identity=identity, plans=dict(ordered), units=dict(sorted(units.items())))
    return Committed(
        state=state,
        orphans=dict(sorted(orphans.items())),
        damaged=frozenset(damaged),
        digests=reader.digests,
        problems=tuple(reader.problems),
    )


def _all_files(location: Location) -> Iterator[str]:
    for folder in ("plans", "units"):
        names = (f"{folder}/{name}" for name in location.names(folder))
        yield from (name for name in names if _FILE.fullmatch(name))


class _Reader:
    """Reads files one by one, and notes what is wrong."""

    def __init__(
        self, location: Location, identity: Identity, named: Mapping[str, str] | None
    ) -> None:
        self.problems: list[Problem] = []
        self.digests: dict[str, str] = {}
        self._location = location
        self._identity = identity
        self._named = named or {}

    def plan(self, file: str, digest: str) -> Plan | None:
        """The plan in a file, if it is whole."""
        data = self._bytes(file, digest)
        if data is None:
            return None
        try:
            plan = load_plan(file, data)
        except StoreError as error:
            self._wrong(file, error, expected="a plan")
            return None
        if plan.capture_id != self._identity.capture_id:
            other = CorruptCache(f"one of capture {plan.capture_id}, of another cache")
            self._wrong(file, other, expected=f"a plan of {self._identity.capture_id}")
            return None
        return plan

    def unit(self, file: str, key: UnitKey, plan: Plan | None) -> UnitRecord | None:
        """The record in a file, if it is whole and fits its plan."""
        plan_digest, number = key
        at = {"plan": plan_digest, "unit": number}
        data = self._bytes(file, self._named.get(file), **at)
        if data is None:
            return None
        try:
            record = load_unit(file, data)
            document = load_document("unit", file, data)
            _check_kinds(record, self._identity)
            if plan is not None:
                _check_plan(record, document, plan)
        except StoreError as error:
            self._wrong(file, error, expected="the commit record of this unit", **at)
            return None
        spelt = spelling_problem("unit", file, document, data)
        if spelt:
            self.problems.append(spelt)
            return None
        return record

    def report_lost_plans(self, plans: Iterable[str]) -> None:
        """A plan that records name and that is not there; one that is damaged was told of."""
        counts: dict[str, int] = {}
        for plan in plans:
            counts[plan] = counts.get(plan, 0) + 1
        told = {problem.file for problem in self.problems}
        for plan, count in counts.items():
            file = plan_name(plan)
            if file not in told:
                expected = f"the plan of {count} commit records"
                self.problems.append(
                    Problem(file=file, expected=expected, found="none: the file is missing")
                )

    def _bytes(self, file: str, digest: str | None, **at: Any) -> bytes | None:
        try:
            data = self._location.read(file)
        except StoreError as error:
            self._wrong(file, error, expected="a file", **at)
            return None
        found = self.digests[file] = bytes_digest(data)
        if digest not in (None, found):
            self._wrong(file, CorruptCache(found), expected=f"sha256 {digest}", **at)
            return None
        return data

    def _wrong(self, file: str, error: Exception, *, expected: str, **at: Any) -> None:
        self.problems.append(problem_of(self._location, file, error, expected=expected, **at))


def _check_kinds(record: UnitRecord, identity: Identity) -> None:
    if (record.attention is None) != (identity.attention is None):
        raise CorruptCache("one that commits other kinds of target than the cache has")


def _check_plan(record: UnitRecord, document: Mapping[str, Any], plan: Plan) -> None:
    """Whether the record's counts and key range are those of its unit."""
    if record.number >= len(plan.units):
        raise CorruptCache(f"one of unit {record.number} of a plan with {len(plan.units)}")
    keys = plan.unit_keys(record.number)
    wanted = (len(keys), min(keys).hex(), max(keys).hex())
    found = (record.shard.rows, document.get("key_min"), document.get("key_max"))
    if found != wanted:
        raise CorruptCache(f"one of (rows, first and last key) {found} instead of {wanted}")
