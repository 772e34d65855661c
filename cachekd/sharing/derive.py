"""A changed copy of a cache that is made before it travels: without text, or without some records.

Comes in: a sealed cache and what is left out. Goes out: a sealed cache in a staging folder, of the
same identity. Shards that hold nothing of what is left out keep their bytes; targets are never
decoded. Where records are dropped, their samples go too, and the plans that held them become plans
of what is left, so that precompute of the same data would capture them again.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cachekd.config import PushConfig
from cachekd.data.digests import KEY_BYTES, bytes_digest, json_id
from cachekd.data.packed import Keys, Places
from cachekd.errors import ConfigError, DataError, StoreError
from cachekd.sharing.content import Content, sealed_content
from cachekd.sharing.copier import Copier
from cachekd.store.identity_files import write_identity
from cachekd.store.io import Location
from cachekd.store.layout import (
    ATTENTION,
    GENERATED,
    KIND,
    attention_name,
    plan_name,
    prior_name,
    read_document,
    samples_name,
    shard_name,
    unit_name,
)
from cachekd.store.plan import Plan, PlannedBatch, Unit, load_plan
from cachekd.store.rows import StoredRows, read_rows, write_rows
from cachekd.store.seal import samples_table, seal
from cachekd.store.state import UnitRecord, load_unit
from cachekd.store.tables import SAMPLES, packed_of, write_table
from cachekd.store.texts import TEXT_LEFT_OUT

CHANGED = ("plans", "units", "samples", KIND, ATTENTION, GENERATED)

_EXPECTED_KEY = (
    f"expected {2 * KEY_BYTES} hex digits a line (cachekd inspect CACHE --record N shows a key)"
)


@contextmanager
def derived(config: PushConfig, content: Content) -> Iterator[Content]:
    """Within: the changed copy, which is taken away afterwards.

    Raises:
        DataError: the file of keys cannot be read, or the cache holds none of them.
        ConfigError: the cache holds attention, which is of no use without tokens.
        StoreError: the folder for the copy cannot be made.
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
    with _staging(config.staging) as folder:
        into = Location(str(Path(folder) / "cache"))
        _Copy(content, into, dropped, keys_only=config.keys_only).make()
        yield sealed_content(into)


@contextmanager
def _staging(above: str | None) -> Iterator[str]:
    try:
        made = tempfile.TemporaryDirectory(prefix="cachekd-push-", dir=above)
    except OSError as error:
        raise StoreError(
            f"staging: no folder can be made in {above or tempfile.gettempdir()} "
            f"({error.strerror}). Name one with room for a copy of the cache"
        ) from error
    with made as folder:
        yield folder


def _read_keys(path: str) -> Keys:
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"drop_keys: {path} cannot be read as keys in hex: {error}") from error
    keys = set()
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(rf"\s*([0-9a-fA-F]{{{2 * KEY_BYTES}}})?\s*", line):
            raise DataError(
                f"drop_keys: {path} line {number}: {_EXPECTED_KEY}; found {line[:80]!r}"
            )
        if line.strip():
            keys.add(bytes.fromhex(line.strip()))
    if not keys:
        raise DataError(f"drop_keys: {path} is empty; {_EXPECTED_KEY}")
    return Keys.of(sorted(keys))


def refuse_kept(url: str, there: Iterable[str], changed: Content) -> None:
    """Refuse a place that holds more than a changed copy: what is left out may be in it.

    It does not matter whether a seal there names it, for who reads the place can read the file.

    Args:
        url: the place, for messages.
        there: names of the files of `CHANGED` folders there.
        changed: the changed copy.

    Raises:
        ConfigError: there are such files; names one.
    """
    own = {*changed.blobs, *changed.documents, *changed.identity_files()}
    kept = sorted(name for name in there if name.partition("/")[0] in CHANGED and name not in own)
    if kept:
        raise ConfigError(
            f"{url} holds {len(kept)} files that are not of the changed copy, such as {kept[0]}: "
            "what is to be left out may be in them, and a push takes nothing away. Push to a new "
            "place"
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
        everything = np.concatenate([*kept, np.zeros(0, np.bool_)])
        if samples != plan.samples or not everything.all():
            plan = replace(
                plan,
                run=json_id({"run": plan.run, "dropped": bytes_digest(self.dropped.data)}),
                keys=plan.keys.take(np.flatnonzero(everything)),
                units=_units_left(plan, everything),
                samples=samples,
                changed={**plan.changed, "records dropped": int((~everything).sum())},
            )
        if self.keys_only and TEXT_LEFT_OUT not in plan.changed:
            # A plan of its own: records with text, which another push may bring, have other names.
            plan = replace(
                plan,
                run=json_id({"run": plan.run, "text": None}),
                changed={**plan.changed, TEXT_LEFT_OUT: len(plan.keys)},
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
