"""What a run finds lost or damaged in its cache, and can make anew: plans, samples, priors.

Comes in: what is committed. Goes out: the same without what cannot be used, and what is lost. Only
what a run reads in whole at its start is looked at: damage within shards is for
``cachekd verify --repair``, after which the same run makes their units anew.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import product

import pyarrow as pa

from cachekd.data.packed import Places
from cachekd.errors import CorruptCache
from cachekd.store.collected import collect
from cachekd.store.io import Location
from cachekd.store.layout import most_bytes, plan_name, prior_name, samples_name
from cachekd.store.plan import Plan
from cachekd.store.problems import file_problem
from cachekd.store.samples import SampleTable
from cachekd.store.seal import samples_table
from cachekd.store.state import CacheState, UnitRecord, load_unit, read_units

_PLAN = re.compile(r"([0-9a-f]{64})\.json")
_UNIT = re.compile(r"([0-9a-f]{64})-[0-9]{1,9}\.json")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LostPlans:
    """Plans that the cache had: those whose file is damaged, and all that records name.

    Attributes:
        damaged: digests of those whose file is there.
        digests: of all that are lost.
        records: commit records of these that parse.
    """

    damaged: frozenset[str]
    digests: frozenset[str]
    records: tuple[UnitRecord, ...]


def whole_prior(location: Location, digest: str) -> bool:
    """Whether a prior is there and has the digest that it names; one out of reach counts as whole.

    Reading it then tells why it cannot be read.
    """
    problem = file_problem(location, prior_name(digest), digest=digest)
    return problem is None or not problem.certain


def whole_priors(location: Location, state: CacheState) -> tuple[CacheState, frozenset[str]]:
    """What is committed without units whose prior is damaged, and these priors."""
    damaged = frozenset(d for d in state.priors() if not whole_prior(location, d))
    for digest in damaged:
        _log.warning("%s was altered; it is learned anew", location.path(prior_name(digest)))
    units = {key: unit for key, unit in state.units.items() if unit.shard.prior not in damaged}
    return replace(state, units=units), damaged


def whole_samples(location: Location, state: CacheState) -> tuple[SampleTable, frozenset[str]]:
    """Samples of the cache in all shards that are whole, and the digests of the others."""
    lost, written = set(), state.written()

    def tables() -> Iterator[tuple[pa.Table, bool]]:
        for digest in state.samples():
            try:
                table = samples_table(location, digest)
            except CorruptCache as error:
                _log.warning("%s", error)
                lost.add(digest)
            else:
                yield table, digest in written

    return collect(tables()), frozenset(lost)


def lost_plans(location: Location, state: CacheState) -> LostPlans:
    """Plans whose file is damaged, or that records name and whose file is not there."""
    there = {match[1] for name in location.names("plans") if (match := _PLAN.fullmatch(name))}
    records = {
        f"units/{name}": match[1]
        for name in location.names("units")
        if (match := _UNIT.fullmatch(name)) and match[1] not in state.plans
    }
    damaged = {
        digest
        for digest in there - state.plans.keys()
        if file_problem(location, plan_name(digest), digest=digest)
    }
    read = []
    for name in records:
        try:
            read.append(load_unit(name, location.read(name, most_bytes("unit"))))
        except CorruptCache as error:
            _log.warning("%s", error)
    missing = {*records.values()} - there
    return LostPlans(
        damaged=frozenset(damaged), digests=frozenset(damaged | missing), records=tuple(read)
    )


def restored(
    location: Location,
    plan: Plan,
    lost: LostPlans,
    plans: Collection[Plan],
    threads: int | None,
) -> Plan | None:
    """The lost plan that this one is, if its digest comes out the same.

    Args:
        location: the cache.
        plan: a plan of the same data and settings, made now.
        lost: plans that are lost.
        plans: those that are there.
        threads: as the user gave them; else those that commit records tell are tried too.
    """
    named = {record.shard.prior for record in lost.records}
    # A plan of which no unit is committed yet may name a prior that no other plan names.
    unnamed = {*location.names("priors")} - {other.prior for other in plans}
    told = {record.numerics.get("threads") for record in lost.records}
    counts = {count for count in told if isinstance(count, int)} if not threads else set()
    sequences = {*range(1, plan.sequence + 1)} - {other.sequence for other in plans}
    every = product(sequences, {None, *named, *unnamed}, {plan.threads, *counts})
    for sequence, prior, count in every:
        again = replace(plan, sequence=sequence, prior=prior, threads=count)
        if again.dump()[0] in lost.digests:
            return again
    return None


def with_plan(location: Location, state: CacheState, digest: str, plan: Plan) -> CacheState:
    """What is committed, with a plan that is written again and its units."""
    plans = {**state.plans, digest: plan}
    ordered = sorted(plans.items(), key=lambda item: (item[1].sequence, item[0]))
    own = read_units(location, state.identity, {digest: plan}, skip_broken=True)
    units = dict(sorted({**state.units, **own}.items()))
    return replace(state, plans=dict(ordered), units=units)


def earlier_samples(location: Location, state: CacheState, plan: Plan) -> Places:
    """Ids of the samples that the cache held when a plan of it was made, as far as they are whole.

    A plan brings the samples that no plan before it has.
    """
    before = {}
    for digest, other in state.plans.items():
        if other == plan:
            break
        before[digest] = other
    return Places(whole_samples(location, replace(state, plans=before))[0].ids)


def refuse_damage(location: Location, plans: frozenset[str], samples: frozenset[str]) -> None:
    """Refuse to work on a cache of which another run's files are lost, before any work is done.

    Raises:
        CorruptCache: names a file and what to do.
    """
    names = [*map(plan_name, sorted(plans)), *map(samples_name, sorted(samples))]
    if names:
        more = f" ({len(names) - 1} more files are lost)" if len(names) > 1 else ""
        raise CorruptCache(
            f"{location.path(names[0])} is lost or was altered{more}, and this command with this "
            "data cannot make it anew: it belongs to another run of this cache. Run the command of "
            "that run first, with the same data and settings, or take it away with cachekd verify "
            "--repair"
        )
