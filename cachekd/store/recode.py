"""Recoding: the records of caches packed anew, with a prior learned from all of them.

A capture learns its prior from its first batches; here it is learned from records spread over
everything, and may be larger. Values, identity, plans and samples stay as they are: only shards,
and the commit records that name them, are other ones. One shard is held in memory at a time.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from cachekd.codecs import CodecHeader
from cachekd.codecs._learn import rows_to_learn
from cachekd.codecs._priors import Prior
from cachekd.data.digests import bytes_digest
from cachekd.errors import ConfigError, CorruptCache, UnsealedCache
from cachekd.store.claims import unrepaired
from cachekd.store.io import Location
from cachekd.store.layout import attention_name, prior_name, shard_name, unit_name
from cachekd.store.manifest import Manifest
from cachekd.store.merge import copy_files, copy_plans, copy_samples, open_all, seal_union
from cachekd.store.priors import Priors, best_prior, write_prior
from cachekd.store.shards import Shard, write_shard
from cachekd.store.state import CacheState, UnitRecord, read_state
from cachekd.types import TopKLogits

_CODEC = "packed"
_MAX_BYTES = 4 << 20
_TOKENS_PER_BYTE = 2
_ROWS_FACTOR = 4  # rows learned from, as a multiple of what a trial learns from
_ROWS = 64  # records decoded at once

Source = tuple[Location, CacheState]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recoded:
    """What `recode` made: the seal, and bytes of shards and their priors before and after."""

    manifest: Manifest
    bytes_before: int
    bytes_after: int


def recode(sources: Sequence[str], target: str) -> Recoded:
    """Unite caches into one whose records are packed anew, and seal it.

    Interrupted, the same call continues: it learns the same prior and keeps what it committed.

    Raises:
        ConfigError: the target holds units that are not from this call.
        MismatchError: two caches have another source or capture; names each field that differs.
        UnsealedCache: the union has samples without targets, and a cache of it is not sealed.
        CorruptCache: a file is missing or altered.
        StoreError: the target is being repaired or collected, or cannot be written.
    """
    united, into = open_all(sources, target)
    with unrepaired(into):
        return _recode(united, into)


def _recode(united: Sequence[Source], into: Location) -> Recoded:
    prior = _learn(united)
    digest = bytes_digest(prior.dump())
    _check_own(into, digest)
    for place, state in united:
        copy_samples(place, state, into)
    write_prior(into, prior)
    for place, state in united:
        copy_plans(place, state, into)
    done = set(read_state(into).units)
    for place, state in united:
        priors = Priors(place)
        for unit, record in state.units.items():
            if unit not in done:
                done.add(unit)
                _recode_unit(place, priors, state, record, into, prior, digest)
    sealed = seal_union(united, into)
    return Recoded(
        manifest=sealed,
        bytes_before=_bytes(united),
        bytes_after=sealed.totals["bytes"] + sum(sealed.priors.values()),
    )


def _check_own(into: Location, prior: str) -> None:
    others = [
        unit_name(*unit)
        for unit, record in read_state(into).units.items()
        if record.shard.prior != prior or not record.numerics.get("recoded")
    ]
    if others:
        raise ConfigError(
            f"merge --recode: expected a target without units of its own; {into.url} holds "
            f"{len(others)}, such as {others[0]}. Name a new folder with --out"
        )


def _learn(united: Sequence[Source]) -> Prior:
    """A prior of records spread evenly over all shards."""
    facts = {digest: shard for _, state in united for digest, shard in state.shards().items()}
    tokens = sum(shard.tokens for shard in facts.values())
    budget = min(_MAX_BYTES, tokens // _TOKENS_PER_BYTE)
    stride = max(1, tokens // (_ROWS_FACTOR * rows_to_learn(budget)))
    records: list[TopKLogits] = []
    header: CodecHeader | None = None
    place_of = 0
    for place, state in united:
        priors = Priors(place)
        for digest, shard_facts in state.shards().items():
            rows = range(-place_of % stride, shard_facts.rows, stride)
            if facts.pop(digest, None) is None:
                continue  # another source holds it too
            place_of += shard_facts.rows
            if rows:
                shard = Shard(place, shard_facts, state.identity.capture_id, priors=priors)
                records += [targets for _, _, targets in shard.records(rows)]
                header = shard.header
    if header is None:
        raise UnsealedCache("merge --recode: expected caches with targets; found none")
    return best_prior(records, replace(header, codec=_CODEC), tokens, budget)


def _recode_unit(
    place: Location,
    priors: Priors,
    state: CacheState,
    record: UnitRecord,
    into: Location,
    prior: Prior,
    digest: str,
) -> None:
    """A unit's shard packed anew, then the record that commits it."""
    capture_id = state.identity.capture_id
    keys = sorted(state.plans[record.plan].unit_keys(record.number))
    shard = Shard(place, record.shard, capture_id, priors=priors)
    stored = []
    for start in range(0, len(shard), _ROWS):
        rows = range(start, min(start + _ROWS, len(shard)))
        stored += shard.records(rows, scaled=False)
    if [key for key, _, _ in stored] != keys:
        raise CorruptCache(f"{place.path(shard.name)} does not hold the keys of its unit")
    header = replace(shard.header, codec=_CODEC, prior=digest)
    data, facts = write_shard(
        header, capture_id, keys, [ids for _, ids, _ in stored], [t for _, _, t in stored], prior
    )
    into.keep(shard_name(facts.digest), data, facts.digest)
    if record.attention is not None:  # its rows are in the same order
        kept = record.attention.digest
        copy_files(place, {attention_name(kept): kept}, into)
    again = UnitRecord(
        plan=record.plan,
        number=record.number,
        shard=facts,
        attention=record.attention,
        numerics={**record.numerics, "recoded": True},
        skipped=record.skipped,
    )
    made = {"host": platform.node(), "at": datetime.now(UTC).isoformat(timespec="seconds")}
    into.create(unit_name(record.plan, record.number), again.dump(tuple(keys), made))


def _files(united: Sequence[Source]) -> Iterator[tuple[str, int]]:
    for place, state in united:
        for digest, facts in state.shards().items():
            yield digest, facts.bytes
        for digest in state.priors():
            yield digest, place.size(prior_name(digest))


def _bytes(united: Sequence[Source]) -> int:
    return sum(dict(_files(united)).values())
