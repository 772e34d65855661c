"""The plan of a run: found in the cache, written again where its file is lost, or made.

Comes in: the documents of a run and what is committed in its cache. Goes out: a `Planned`, with the
samples shards that have to be written. Nothing is written here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from cachekd.capture.documents import Documents
from cachekd.capture.healing import (
    earlier_samples,
    lost_plans,
    refuse_damage,
    restored,
    whole_priors,
    whole_samples,
    with_plan,
)
from cachekd.config import PrecomputeConfig
from cachekd.data.digests import bytes_digest
from cachekd.data.packed import Keys, Places
from cachekd.data.samples import Prepared
from cachekd.data.spool import SpooledFiles
from cachekd.errors import DataError
from cachekd.store.identity import Identity
from cachekd.store.io import Location
from cachekd.store.layout import samples_name
from cachekd.store.plan import Plan, cut, run_digest
from cachekd.store.samples import SHARD_ROWS, SampleTable, write_samples
from cachekd.store.state import CacheState
from cachekd.types import Int64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Planned:
    """A plan, and what it means for the cache.

    Attributes:
        plan: the plan.
        files: samples shards to write, by digest.
        state: what is committed and can be used, units of a plan that is written again among it.
        held: samples of the cache that are whole, if there is a cache.
        new_samples: samples that the cache does not hold.
        restored: whether the plan's file is lost, and written again.
        damaged_priors: priors that are there and damaged; units that need one count as missing.
    """

    plan: Plan
    files: SpooledFiles
    state: CacheState | None
    held: SampleTable | None
    new_samples: int
    restored: bool = False
    damaged_priors: frozenset[str] = frozenset()

    def done(self) -> Places:
        """Keys whose targets are committed."""
        return Places(self.state.done_keys() if self.state else Keys.of([]))

    def todo(self, digest: str, done: Places) -> list[int]:
        """Units of the plan, of this digest, that are not committed and bring a key."""
        committed = self.state.units if self.state else {}
        return [
            n
            for n in range(len(self.plan.units))
            if (digest, n) not in committed and (done.find(self.plan.packed_keys(n)) < 0).any()
        ]


def plan_of(
    config: PrecomputeConfig,
    identity: Identity,
    location: Location,
    state: CacheState | None,
    prepared: Prepared,
    written: Mapping[str, Any] | None,
    documents: Documents,
    bytes_per_token: int,
) -> Planned:
    """Find the plan of a run, or make one of what the cache lacks.

    Raises:
        CorruptCache: a plan or a samples shard of another run is lost, which this run cannot make.
        DataError: samples of this run are lost, and this data does not make the same file.
    """
    new = _New(config, identity, prepared, written, documents, bytes_per_token)
    if state is None:
        every = np.arange(len(documents.ids))
        plan, files = new.plan(None, every)
        return Planned(plan=plan, files=files, state=None, held=None, new_samples=len(every))
    state, damaged = whole_priors(location, state)
    held, lost = whole_samples(location, state)
    fresh = np.flatnonzero(Places(held.ids).find(documents.ids) < 0)
    gone = lost_plans(location, state)
    run, again = new.run(), None
    found = next((plan for plan in state.plans.values() if plan.run == run), None)
    if found is not None:
        plan, files = found, _lost_samples(location, state, found, documents, lost)
    else:
        plan, files = new.plan(state, fresh)
        there = state.plans.values() if state else ()
        again = restored(location, plan, gone, there, config.threads) if gone.digests else None
    if again is None and not (found and len(files)):
        refuse_damage(location, gone.damaged, lost)
    planned = Planned(
        plan=plan,
        files=files,
        state=state,
        held=held,
        new_samples=len(fresh),
        damaged_priors=damaged,
    )
    if again is None:
        return planned
    state, more = whole_priors(location, with_plan(location, state, again.dump()[0], again))
    return replace(planned, plan=again, state=state, restored=True, damaged_priors=damaged | more)


def default_threads() -> int:
    """CPU threads of a teacher where nobody says."""
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class _New:
    """What a new plan is made of; arguments as of `plan_of`."""

    config: PrecomputeConfig
    identity: Identity
    prepared: Prepared
    written: Mapping[str, Any] | None
    documents: Documents
    bytes_per_token: int

    def run(self) -> str:
        """Digest of the run, by which its plan is found again."""
        return run_digest(self.documents.ids, self.identity.capture_id, self._settings())

    def plan(self, state: CacheState | None, fresh: Int64) -> tuple[Plan, SpooledFiles]:
        """A plan of the keys that are missing, and the samples shards of what is fresh."""
        plans = state.plans.values() if state else ()
        documents, firsts = self.documents, self.documents.firsts
        done = Places(state.done_keys() if state else Keys.of([]))
        missing = firsts[done.find(documents.keys.take(firsts)) < 0]
        order, units = cut(
            documents.lengths[missing], bytes_per_token=self.bytes_per_token, **self._settings()
        )
        files = SpooledFiles()
        for data in _samples_files(documents, fresh):
            files.add(data)
        plan = Plan(
            run=self.run(),
            capture_id=self.identity.capture_id,
            sequence=1 + max((plan.sequence for plan in plans), default=0),
            keys=documents.keys.take(missing[order]).spilled(),
            units=units,
            threads=self.config.threads or default_threads(),
            samples=tuple(files),
            skipped=self.prepared.skipped,
            changed=self.prepared.changed,
            responses=self.written,
        )
        return plan, files

    def _settings(self) -> dict[str, int]:
        names = ("batch_tokens", "sort_window", "unit_tokens")
        return {name: getattr(self.config, name) for name in names}


def _samples_files(documents: Documents, fresh: Int64) -> Iterator[pa.Buffer]:
    """Samples shards of these samples of the data."""
    for start in range(0, len(fresh), SHARD_ROWS):
        part = fresh[start : start + SHARD_ROWS]
        samples = (documents.samples[int(i)] for i in part)
        keys, ids = documents.keys.take(part), documents.ids.take(part)
        yield write_samples(samples, keys, ids, part)


def _lost_samples(
    location: Location,
    state: CacheState,
    plan: Plan,
    documents: Documents,
    lost: frozenset[str],
) -> SpooledFiles:
    """Samples shards of a plan that are lost, made again of the same data.

    Raises:
        DataError: another file comes of it.
    """
    files, own = SpooledFiles(), lost & {*plan.samples}
    if not own:
        return files
    before = earlier_samples(location, state, plan)
    for data in _samples_files(documents, np.flatnonzero(before.find(documents.ids) < 0)):
        if bytes_digest(data) in own:
            files.add(data)
    if own - files.keys():
        name = location.path(samples_name(min(own - files.keys())))
        raise DataError(
            f"{name} is lost or was altered. This data has the samples that it held, but makes "
            "another file of them: its rows came from files of other names or stood in other "
            "places. Run the command with the files of the first run, as they were named then, or "
            "take what is left of it away with cachekd verify --repair"
        )
    return files
