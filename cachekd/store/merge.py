"""Merging: the union of caches of one identity. Shards are copied as they are, never rewritten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from cachekd.errors import ConfigError
from cachekd.store.claims import unrepaired
from cachekd.store.generated import generated_files
from cachekd.store.identity import refuse_difference, warn_of_difference
from cachekd.store.identity_files import write_identity
from cachekd.store.io import Location
from cachekd.store.layout import (
    attention_name,
    plan_name,
    prior_name,
    samples_name,
    shard_name,
    unit_name,
)
from cachekd.store.manifest import Manifest, generations
from cachekd.store.pieces import Checked
from cachekd.store.seal import seal
from cachekd.store.state import CacheState, committed, is_committed, read_state
from cachekd.store.texts import lacks_text, refuse_mix


def merge(sources: Sequence[str], target: str) -> Manifest:
    """Unite caches into one, and seal it.

    Keys and samples that several caches hold are held once. The target may be a cache already.

    Raises:
        MismatchError: two caches have another source or capture; names each field that differs.
        UnsealedCache: the union has samples without targets, and a cache of it is not sealed.
        CorruptCache: a file is missing or altered.
        StoreError: the target is being repaired or collected, or cannot be written.
    """
    united, into = open_all(sources, target)
    with unrepaired(into):
        for place, state in united:
            _bring(place, state, into)
        return seal_union(united, into)


def _bring(place: Location, state: CacheState, into: Location) -> None:
    """All that a cache has: files that are named by their digest, plans, then commit records."""
    copy_samples(place, state, into)
    state = _without_others(state, into)
    copy_files(place, {shard_name(digest): digest for digest in state.shards()}, into)
    copy_files(place, {prior_name(digest): digest for digest in state.priors()}, into)
    kept = [facts.digest for facts in state.attention().values()]
    copy_files(place, {attention_name(digest): digest for digest in kept}, into)
    copy_plans(place, state, into)
    for plan, number in state.units:
        name = unit_name(plan, number)
        data = place.read(name)
        if not into.create(name, data) and not is_committed(into, plan, number):
            into.replace(name, data)


def _without_others(state: CacheState, into: Location) -> CacheState:
    """A state but for units of which another cache has other shards: its records stay."""
    there = {f"units/{name}" for name in into.names("units")}
    left = dict(state.units)
    for unit, record in state.units.items():
        theirs = committed(into, *unit) if unit_name(*unit) in there else None
        if theirs is not None and theirs.files() != record.files():
            del left[unit]
    return replace(state, units=left)


def seal_union(united: Sequence[tuple[Location, CacheState]], into: Location) -> Manifest:
    """Seal a union; what sealed caches left out, as parts of others do, is left out of it too."""
    return seal(into, leave_out=all(generations(place) for place, _ in united))


def open_all(
    sources: Sequence[str], target: str
) -> tuple[list[tuple[Location, CacheState]], Location]:
    """The sources and what is committed in each, and the target, with its identity written.

    Raises:
        MismatchError: two caches have another source or capture; names each field that differs. Or
            one of them is without text.
    """
    if not sources:
        raise ConfigError("merge: expected at least one cache to merge; found none")
    places = [Location(url) for url in sources]
    states = [read_state(place) for place in places]
    into = Location(target)
    into.check_writable()
    for url, state in zip(sources[1:], states[1:], strict=True):
        _refuse("merge", states[0], state, sources[0], url)
    write_identity(into, states[0].identity)
    _refuse("merge", states[0], read_state(into), sources[0], target)
    return list(zip(places, states, strict=True)), into


def _refuse(door: str, left: CacheState, right: CacheState, left_url: str, right_url: str) -> None:
    here, there = left.identity, right.identity
    refuse_difference(door, here.facts(), there.facts(), left_url, right_url)
    warn_of_difference(door, here.provenance, there.provenance, left_url, right_url)
    if left.plans and right.plans:  # else there is nothing yet
        lacks = [lacks_text(plan.changed for plan in own.plans.values()) for own in (left, right)]
        refuse_mix(door, lacks[0], lacks[1], left_url, right_url)


def copy_samples(place: Location, state: CacheState, into: Location) -> None:
    """Samples of a cache, responses, and the priors that plans name for units still to come."""
    copy_files(place, generated_files(place), into)
    named = {samples_name(digest): digest for digest in state.samples()}
    for digest, plan in state.plans.items():
        if plan.prior and state.missing_units(digest) and place.exists(prior_name(plan.prior)):
            named[prior_name(plan.prior)] = plan.prior
    copy_files(place, named, into)


def copy_plans(place: Location, state: CacheState, into: Location) -> None:
    """Plans, once what they name is there."""
    for plan in state.plans:
        into.keep(plan_name(plan), place.read(plan_name(plan)), plan)


def copy_files(place: Location, named: Mapping[str, str], into: Location) -> None:
    """Files by name, whose digests are given.

    Raises:
        CorruptCache: a file is missing or altered.
    """
    for name, digest in named.items():
        if not into.has(name, digest):
            into.take(name, Checked(place.path(name), digest, partial(place.pieces, name)))
