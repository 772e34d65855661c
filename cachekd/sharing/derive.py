"""A changed copy of a cache that is made before it travels: without text, or without some records.

Comes in: a sealed cache and what is left out. Goes out: a sealed cache in a staging folder, of the
same identity. Shards that hold nothing of what is left out keep their bytes; targets are never
decoded. Where records are dropped, their samples go too, and the plans that held them become plans
of what is left, so that precompute of the same data would capture them again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cachekd.config import PushConfig
from cachekd.data.digests import KEY_BYTES, bytes_digest, json_id
from cachekd.data.packed import Keys, Places
from cachekd.errors import ConfigError, DataError
from cachekd.sharing.content import Content, sealed_content
from cachekd.sharing.copier import Copier
from cachekd.store.identity_files import has_cache, write_identity
from cachekd.store.io import Location
from cachekd.store.layout import (
    attention_name,
    plan_name,
    prior_name,
    read_document,
    samples_name,
    shard_name,
    unit_name,
)
from cachekd.store.manifest import read_manifest
from cachekd.store.plan import Plan, PlannedBatch, Unit, load_plan
from cachekd.store.rows import StoredRows, read_rows, write_rows
from cachekd.store.seal import samples_table, seal
from cachekd.store.state import UnitRecord, load_unit
from cachekd.store.tables import SAMPLES, packed_of, write_table


@contextmanager
def derived(config: PushConfig, content: Content) -> Iterator[Content]:
    """Within: the changed copy, which is taken away afterwards.

    Raises:
        DataError: the file of keys cannot be read, or the cache holds none of them.
        ConfigError: the location holds shards that the copy was made to be without, or the cache
            holds attention, which is of no use without tokens.
        CorruptCache: a file of the cache is altered.
    """
    if config.keys_only and content.identity.attention_id is not None:
        raise ConfigError(
            "keys_only: attention is kept for the tokens themselves; push this cache with its text"
        )
    dropped = _read_keys(config.drop_keys) if config.drop_keys else Keys.of([])
    if config.drop_keys and not content.index().holds(dropped).any():
        raise DataError(
            f"drop_keys: {content.location.url} holds none of the {len(dropped)} keys in "
            f"{config.drop_keys}"
        )
    with tempfile.TemporaryDirectory(prefix="cachekd-push-", dir=config.staging) as folder:
        into = Location(str(Path(folder) / "cache"))
        _Copy(content, into, dropped, keys_only=config.keys_only).make()
        changed = sealed_content(into)
        _refuse_kept(config, content, changed)
        yield changed


def _read_keys(path: str) -> Keys:
    try:
        lines = Path(path).read_text(encoding="ascii").split()
        keys = [bytes.fromhex(line) for line in lines]
    except (OSError, ValueError) as error:
        raise DataError(f"drop_keys: {path} cannot be read as keys in hex: {error}") from error
    if not keys or any(len(key) != KEY_BYTES for key in keys):
        raise DataError(
            f"drop_keys: expected {2 * KEY_BYTES} hex digits a line in {path} (cachekd inspect "
            "CACHE --record N shows a key)"
        )
    return Keys.of(sorted(set(keys)))


def _refuse_kept(config: PushConfig, content: Content, changed: Content) -> None:
    """A push takes nothing away: what is there already would stay."""
    if config.repo is not None:
        return
    into = Location(config.location)
    there = read_manifest(into) if has_cache(into) else None
    if there is None:
        return
    left_out = content.manifest.shards.keys() - changed.manifest.shards.keys()
    kept = left_out & there.shards.keys()
    if kept:
        raise ConfigError(
            f"{into.url} holds {len(kept)} shards with what is to be left out, such as "
            f"{shard_name(min(kept))}; a push takes nothing away. Push to a new place"
        )


@dataclass(frozen=True, slots=True)
class _Copy:
    content: Content
    into: Location
    dropped: Keys
    keys_only: bool

    def make(self) -> None:
        """Make the copy and seal it."""
        source, into = self.content.location, self.into
        write_identity(into, self.content.identity)
        for digest in self.content.manifest.priors:
            into.keep(prior_name(digest), source.read(prior_name(digest)), digest)
        plans = {
            name.split("/")[1].removesuffix(".json"): load_plan(name, source.read(name))
            for name in self.content.documents
            if name.startswith("plans/")
        }
        renamed = {digest: self._plan(digest, plan) for digest, plan in plans.items()}
        for name in self.content.documents:
            if name.startswith("units/"):
                record = load_unit(name, source.read(name))
                self._unit(name, record, plans[record.plan], renamed[record.plan])
        what = {"keys_only": self.keys_only, "dropped_keys": len(self.dropped)}
        seal(into, leave_out=True, origin={**self.content.origin(), **what})

    def _plan(self, digest: str, plan: Plan) -> tuple[str, tuple[int, ...]]:
        """Write the plan of what is left; its digest, and which of its units are left."""
        kept = [self._kept(plan.packed_keys(n)) for n in range(len(plan.units))]
        samples = tuple(filter(None, map(self._samples, plan.samples)))
        left = tuple(n for n, mask in enumerate(kept) if mask.any())
        changed = samples != plan.samples or not all(mask.all() for mask in kept)
        if changed:
            everything = np.concatenate([*kept, np.zeros(0, np.bool_)])
            plan = replace(
                plan,
                run=json_id({"run": plan.run, "dropped": bytes_digest(self.dropped.data)}),
                keys=plan.keys.take(np.flatnonzero(everything)),
                units=_units_left(plan, everything),
                samples=samples,
                changed={**plan.changed, "records dropped": int((~everything).sum())},
            )
        name, data = plan.dump()
        self.into.keep(plan_name(name), data, name)
        return name, left

    def _kept(self, keys: Keys) -> NDArray[np.bool_]:
        """Of these keys, whether each stays."""
        return np.asarray(Places(self.dropped).find(keys) < 0)

    def _samples(self, digest: str) -> str | None:
        """Write a samples shard without what is dropped; its digest, or None if nothing is left."""
        table = samples_table(self.content.location, digest)
        kept = self._kept(packed_of(table["key"].combine_chunks()))
        if not kept.any():
            return None
        if kept.all():
            data = self.content.location.read(samples_name(digest))
        else:
            left = table.take(pa.array(np.flatnonzero(kept).tolist(), pa.int64()))
            columns = {name: left[name].combine_chunks() for name in SAMPLES.names}
            data = write_table(columns, SAMPLES, {"cachekd": "samples"})
        name = bytes_digest(data)
        self.into.keep(samples_name(name), data, name)
        return name

    def _unit(
        self, name: str, record: UnitRecord, plan: Plan, renamed: tuple[str, tuple[int, ...]]
    ) -> None:
        """Write the shards of a unit without what is left out, then its record."""
        digest, left = renamed
        if record.number not in left:
            return
        keys = plan.packed_keys(record.number)
        kept = keys.take(np.flatnonzero(self._kept(keys)))
        made = read_document(self.content.location, "unit", name)["made"]
        if len(kept) == len(keys) and not self.keys_only:
            self._as_it_is(record)
        else:
            record = self._rewritten(record, kept)
        again = replace(record, plan=digest, number=left.index(record.number))
        self.into.create(unit_name(digest, again.number), again.dump(tuple(kept), made))

    def _as_it_is(self, record: UnitRecord) -> None:
        copier = Copier(self.content.location, self.into, 1)
        digests: Mapping[str, str] = {shard_name(record.shard.digest): record.shard.digest}
        if record.attention:
            beside = record.attention.digest
            digests = {**digests, attention_name(beside): beside}
        for name, digest in digests.items():
            copier.bring(name, digest)

    def _rewritten(self, record: UnitRecord, kept: Keys) -> UnitRecord:
        identity = self.content.identity
        rows: StoredRows = read_rows(
            self.content.location, identity, record.shard, record.attention
        )
        rows = rows.take(np.flatnonzero(Places(kept).find(rows.keys) >= 0))
        if self.keys_only:
            rows = rows.without_text()
        data, facts, beside, own = write_rows(rows, identity)
        self.into.keep(shard_name(facts.digest), data, facts.digest)
        if beside is not None and own is not None:
            self.into.keep(attention_name(own.digest), beside, own.digest)
        skipped = {key: found for key, found in record.skipped.items() if key in set(kept)}
        return replace(record, shard=facts, attention=own, skipped=skipped)


def _units_left(plan: Plan, kept: NDArray[np.bool_]) -> tuple[Unit, ...]:
    """Units of a plan without the keys that go; none that is empty."""
    units: list[Unit] = []
    first = 0
    for unit in plan.units:
        batches = []
        for batch in unit:
            rows = int(kept[batch.first : batch.first + batch.rows].sum())
            if rows:
                batches.append(PlannedBatch(first, rows, batch.padded_length))
                first += rows
        if batches:
            units.append(tuple(batches))
    return tuple(units)
