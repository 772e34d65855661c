"""Commits of an import that become one plan, so that a large cache has few files to open.

Comes in: commits, whose shards are written already and named by nothing yet. Goes out: their
samples in full shards, a plan, and the records of its units. A plan takes the more commits the
more there were before, so that their number grows with the logarithm of the work; what stops
before a plan is written is made again by the same command. Which commits share a plan follows from
the source alone: a disturbed import ends in the same shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cachekd.data.digests import bytes_digest
from cachekd.data.packed import Keys
from cachekd.store.commit import commit_record
from cachekd.store.identity import Identity
from cachekd.store.io import Location
from cachekd.store.layout import plan_name, samples_name
from cachekd.store.plan import Plan, Unit
from cachekd.store.samples import SHARD_ROWS, write_samples
from cachekd.store.shards import ShardFacts
from cachekd.store.skipped import Skipped
from cachekd.store.state import UnitRecord
from cachekd.types import Sample

_SHARE = 16  # of the commits so far, what one plan may hold
_TOKENS = 1 << 23  # of samples that wait in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenUnit:
    """A unit whose shard is written.

    Attributes:
        unit: its batches, numbered from the first key of the unit.
        keys: in the order of the unit.
        shard: where its targets are.
        skipped: bad rows by key.
        seconds: that it took.
    """

    unit: Unit
    keys: tuple[bytes, ...]
    shard: ShardFacts
    skipped: Skipped
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Documents that are committed together.

    Attributes:
        samples: new ones, with key and content id.
        units: of new keys.
        skipped: documents left out beside them, by reason.
    """

    samples: Sequence[tuple[Sample, bytes, bytes]]
    units: Sequence[WrittenUnit]
    skipped: Mapping[str, int]


@dataclass(slots=True)
class Gathered:
    """Commits that wait for their plan.

    Args:
        location: the cache.
        identity: whose targets they are.
        format: that they were read from.
        sequence: of the next plan.
    """

    location: Location
    identity: Identity
    format: str
    sequence: int
    _waiting: list[Commit] = field(default_factory=list)
    _met: int = 0
    _since: int = 0
    _tokens: int = 0

    def take(self, commit: Commit, tokens: int) -> bool:
        """Take a commit of so many tokens, new or not; whether it is time for a plan."""
        if commit.samples or commit.units or commit.skipped:
            self._waiting.append(commit)
        self._met, self._since, self._tokens = self._met + 1, self._since + 1, self._tokens + tokens
        return self._since * _SHARE >= self._met or self._tokens >= _TOKENS

    def write(self, run: str) -> None:
        """Write a plan of all that waits, and commit its units.

        Args:
            run: what makes the plan another than others.

        Raises:
            StoreError: a file cannot be written.
        """
        waiting, self._waiting, self._since, self._tokens = self._waiting, [], 0, 0
        if not waiting:
            return
        written = [unit for commit in waiting for unit in commit.units]
        plan = Plan(
            run=run,
            capture_id=self.identity.capture_id,
            sequence=self.sequence,
            keys=Keys.of(key for unit in written for key in unit.keys),
            units=_placed(written),
            threads=1,
            samples=self._write_samples([one for commit in waiting for one in commit.samples]),
            skipped=dict(sum((Counter(commit.skipped) for commit in waiting), Counter())),
            changed={},
        )
        digest, data = plan.dump()
        self.location.keep(plan_name(digest), data, digest)
        for number, unit in enumerate(written):
            record = UnitRecord(
                plan=digest,
                number=number,
                shard=unit.shard,
                numerics={"imported": self.format},
                skipped=unit.skipped,
            )
            commit_record(self.location, record, unit.keys, unit.seconds)
        self.sequence += 1

    def _write_samples(self, samples: Sequence[tuple[Sample, bytes, bytes]]) -> tuple[str, ...]:
        """Digests of the samples shards of new samples."""
        digests = []
        for start in range(0, len(samples), SHARD_ROWS):
            part = samples[start : start + SHARD_ROWS]
            own, keys, ids = zip(*part, strict=True)
            data = write_samples(iter(own), keys, ids, np.arange(start, start + len(part)))
            digests.append(bytes_digest(data))
            self.location.keep(samples_name(digests[-1]), data, digests[-1])
        return tuple(digests)


def _placed(written: Sequence[WrittenUnit]) -> tuple[Unit, ...]:
    """Units whose batches are numbered from the first key of the plan."""
    units, first = [], 0
    for one in written:
        units.append(tuple(replace(batch, first=first + batch.first) for batch in one.unit))
        first += len(one.keys)
    return tuple(units)
