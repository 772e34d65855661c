"""Plans: which samples, batches and padded lengths a run has, frozen before any teacher call.

Units, batches and padding are a function of the data and the settings, never of rank, world size
or what went wrong on the way; so a disturbed run ends in the same shards as an undisturbed one.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.data import limits, strict
from cachekd.data.digests import KEY_BYTES, bytes_digest, json_id
from cachekd.data.packed import Keys
from cachekd.errors import CorruptCache
from cachekd.store.layout import dump_document, load_document
from cachekd.types import Int64

UNIT_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """Rows ``first`` to ``first + rows`` of a plan's keys, padded to ``padded_length`` tokens."""

    first: int
    rows: int
    padded_length: int


Unit = tuple[PlannedBatch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run's work.

    Attributes:
        run: digest of the data, capture and cutting settings; the same command has the same.
        sequence: plans of a cache in the order they were made.
        keys: sample keys in capture order: the batches are consecutive ranges.
        units: each becomes one shard.
        threads: CPU threads of the teacher.
        samples: digests of the samples shards that came with this plan.
        prior: digest of the prior that its shards are packed with, or None.
        responses: where the teacher wrote the responses, with what, and how many; else None.
        skipped: rows left out, by reason.
        changed: rows truncated or split, by what was done.
    """

    run: str
    capture_id: str
    sequence: int
    keys: Keys
    units: tuple[Unit, ...]
    threads: int
    samples: tuple[str, ...]
    skipped: Mapping[str, int]
    changed: Mapping[str, int]
    prior: str | None = None
    responses: Mapping[str, Any] | None = None

    def unit_keys(self, number: int) -> tuple[bytes, ...]:
        """Keys of a unit, in capture order."""
        return tuple(self.packed_keys(number))

    def packed_keys(self, number: int) -> Keys:
        """The same, packed."""
        unit = self.units[number]
        return self.keys[unit[0].first : unit[-1].first + unit[-1].rows]

    def dump(self) -> tuple[str, bytes]:
        """Digest and bytes of the plan's file."""
        data = dump_document(
            "plan",
            {
                "run": self.run,
                "capture_id": self.capture_id,
                "sequence": self.sequence,
                "keys": base64.b64encode(self.keys.data.data).decode(),
                "units": [[[b.rows, b.padded_length] for b in unit] for unit in self.units],
                "threads": self.threads,
                "samples": list(self.samples),
                "skipped": dict(self.skipped),
                "changed": dict(self.changed),
                "prior": self.prior,
                **({} if self.responses is None else {"responses": dict(self.responses)}),
            },
        )
        return bytes_digest(data), data


def load_plan(name: str, data: bytes) -> Plan:
    """Parse a plan's file; its name must be the digest of its bytes.

    Raises:
        CorruptCache: it is not the plan that was written.
    """
    if bytes_digest(data) != name.rsplit("/", 1)[-1].removesuffix(".json"):
        raise CorruptCache(f"{name}: its name is not the digest of its bytes; it was altered")
    document = load_document("plan", name, data)
    try:
        return _plan(document)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptCache(f"{name} is no plan: {error!r:.300}") from error


def _plan(document: Mapping[str, Any]) -> Plan:
    packed = base64.b64decode(strict.text(document["keys"]), validate=True)
    keys = Keys(np.frombuffer(packed, f"S{KEY_BYTES}"))
    responses = document.get("responses")
    return Plan(
        run=strict.text(document["run"]),
        capture_id=strict.short_id(document["capture_id"]),
        sequence=strict.whole(document["sequence"], limits.RUNS),
        keys=keys,
        units=_units(document["units"], len(keys)),
        threads=strict.whole(document["threads"], 1 << 16, 1),
        samples=strict.distinct(strict.listed(document["samples"], limits.SHARDS, strict.digest)),
        skipped=strict.counts(document["skipped"]),
        changed=strict.counts(document["changed"]),
        prior=None if document["prior"] is None else strict.digest(document["prior"]),
        # Only a run whose responses the teacher wrote says anything of it.
        responses=None if responses is None else strict.fields(responses),
    )


def _units(value: Any, n_keys: int) -> tuple[Unit, ...]:
    """Units as ranges that cover the keys."""
    first = 0

    def batch(value: Any) -> PlannedBatch:
        nonlocal first
        rows, padded_length = value
        found = PlannedBatch(
            first, strict.whole(rows, n_keys, 1), strict.whole(padded_length, limits.TOKENS, 2)
        )
        first += found.rows
        return found

    units = strict.listed(value, limits.UNITS, lambda unit: strict.listed(unit, n_keys, batch))
    if first != n_keys or not all(units):
        raise ValueError("its units do not cover its keys")
    return units


def run_digest(ids: Sequence[bytes], capture_id: str, settings: Mapping[str, Any]) -> str:
    """What makes a run the same run: its samples in order, the capture, how work is cut."""
    samples = bytes_digest(Keys.of(ids).data)
    return json_id({"samples": samples, "capture_id": capture_id, "settings": dict(settings)})


def cut(
    lengths: Sequence[int] | NDArray[np.integer],
    *,
    batch_tokens: int,
    sort_window: int,
    unit_tokens: int,
    bytes_per_token: int,
) -> tuple[Int64, tuple[Unit, ...]]:
    """Cut samples into batches and units.

    Args:
        lengths: tokens of each sample, in data order.
        batch_tokens: most tokens of a batch, padding included (a longer sample goes alone).
        sort_window: samples are sorted by length, longest first, within windows of this many.
        unit_tokens: a unit ends when it holds at least this many tokens.
        bytes_per_token: upper bound of what is stored; a unit also ends at `UNIT_BYTES`.

    Returns:
        the capture order as indices into ``lengths``, and the units.
    """
    lengths_P = np.asarray(lengths, dtype=np.int64)
    order_P = _windowed(lengths_P, sort_window)
    units: list[Unit] = []
    unit: list[PlannedBatch] = []
    tokens = 0
    limit = min(unit_tokens, max(1, UNIT_BYTES // bytes_per_token))
    for batch in _batches(lengths_P[order_P], batch_tokens):
        unit.append(batch)
        tokens += batch.rows * batch.padded_length
        if tokens >= limit:
            units.append(tuple(unit))
            unit, tokens = [], 0
    if unit:
        units.append(tuple(unit))
    return order_P, tuple(units)


def _windowed(lengths_P: Int64, window: int) -> Int64:
    """Longest first within each window; equal lengths stay in their order."""
    order_P = np.empty(len(lengths_P), dtype=np.int64)
    for first in range(0, len(lengths_P), window):
        part = slice(first, first + window)
        order_P[part] = first + np.argsort(-lengths_P[part], kind="stable")
    return order_P


def _batches(lengths_P: Int64, budget: int) -> Iterator[PlannedBatch]:
    first = 0
    longest = 0
    for i, length in enumerate(map(int, lengths_P)):
        grown = max(longest, length)
        if i > first and grown * (i - first + 1) > budget:
            yield PlannedBatch(first, i - first, longest)
            first, grown = i, length
        longest = grown
    if len(lengths_P):
        yield PlannedBatch(first, len(lengths_P) - first, longest)
