"""From what is wrong with a cache to what goes and what stays.

Comes in: what an examination found. Goes out: a `Damage`; nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cachekd.store.committed import Committed, UnitKey, plan_of, unit_of, without_samples
from cachekd.store.layout import prior_name, unit_name
from cachekd.store.problems import Problem
from cachekd.store.state import CacheState, UnitRecord
from cachekd.store.verify import Examined


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """What of a cache is bad, and what is left.

    Attributes:
        left: plans and units that a seal can name.
        dropped: units that go.
        waiting: files of units that are whole and cannot be read for want of a prior.
        files: bad files of any kind.
        plans: plans that are lost, and units of which stay.
        kept: commit records that stay.
    """

    left: CacheState
    dropped: frozenset[UnitKey]
    waiting: frozenset[str]
    files: frozenset[str]
    plans: frozenset[str]
    kept: Mapping[UnitKey, UnitRecord]

    @classmethod
    def of(cls, found: Examined) -> Damage:
        """Sort what an examination of all that is committed found."""
        committed = found.committed
        assert committed is not None, "its identity is whole"
        state = committed.state
        files = frozenset(problem.file for problem in found.findings)
        dropped = _dropped(committed, found.findings, files)
        kept = {key: r for key, r in committed.records().items() if key not in dropped}
        units = {
            key: r
            for key, r in kept.items()
            if key in state.units and not (r.shard.prior and prior_name(r.shard.prior) in files)
        }
        return cls(
            left=replace(without_samples(state, files), units=units),
            dropped=dropped,
            waiting=frozenset(unit_name(*key) for key in state.units.keys() & kept.keys() - units),
            files=files,
            plans=frozenset(name for name in files if plan_of(name) in {key[0] for key in kept}),
            kept=kept,
        )

    def gone(self) -> set[str]:
        """Files that a seal of what is left must say it lacks."""
        units = {unit_name(*key) for key in self.dropped}
        return {*units, *self.waiting, *(n for n in self.files if n.startswith("samples/"))}


def _dropped(
    committed: Committed, findings: Iterable[Problem], files: frozenset[str]
) -> frozenset[UnitKey]:
    """Units whose record is bad, or one of whose shards is."""
    dropped = {key for problem in findings if (key := unit_of(problem.file))}
    for key, record in committed.records().items():
        prior = {prior_name(record.shard.prior)} if record.shard.prior else set()
        if not files.isdisjoint({*record.files()} - prior):
            dropped.add(key)
    return frozenset(dropped)
