"""Merging: the union of caches of one identity. Shards are copied as they are, never rewritten."""

from __future__ import annotations

from collections.abc import Sequence

from cachekd.data.digests import bytes_digest
from cachekd.errors import ConfigError, CorruptCache
from cachekd.store.identity import refuse_difference
from cachekd.store.io import Location
from cachekd.store.layout import (
    attention_name,
    plan_name,
    prior_name,
    samples_name,
    shard_name,
    unit_name,
)
from cachekd.store.seal import Manifest, seal
from cachekd.store.state import CacheState, read_state, write_identity


def merge(sources: Sequence[str], target: str) -> Manifest:
    """Unite caches into one, and seal it.

    Keys and samples that several caches hold are held once. The target may be a cache already.

    Raises:
        MismatchError: two caches have another source or capture; names each field that differs.
        UnsealedCache: the union has samples without targets.
        CorruptCache: a file is missing or altered.
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
    for place, state in zip(places, states, strict=True):
        _copy(place, state, into)
    return seal(into)


def _refuse(door: str, left: CacheState, right: CacheState, left_url: str, right_url: str) -> None:
    refuse_difference(
        door,
        left.identity.facts(),
        right.identity.facts(),
        left_url,
        right_url,
    )


def _copy(place: Location, state: CacheState, into: Location) -> None:
    """Samples and shards first, then plans, then the commit records that make them count."""
    named = {samples_name(digest): digest for digest in state.samples()}
    named |= {prior_name(digest): digest for digest in state.priors()}
    named |= {prior_name(plan.prior): plan.prior for plan in state.plans.values() if plan.prior}
    named |= {shard_name(digest): digest for digest in state.shards()}
    named |= {attention_name(facts.digest): facts.digest for facts in state.attention().values()}
    for name, digest in named.items():
        if not into.exists(name):
            data = place.read(name)
            if bytes_digest(data) != digest:
                raise CorruptCache(f"{place.path(name)}: its bytes do not have the digest it names")
            into.create(name, data)
    documents = [plan_name(plan) for plan in state.plans]
    documents += [unit_name(plan, number) for plan, number in state.units]
    for name in documents:
        into.create(name, place.read(name))
