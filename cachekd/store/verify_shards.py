"""Verifying shards: bytes, digests, and every record of those that are read in whole.

Comes in: what is committed, and which shards to decode. Goes out: problems, each with the unit it
belongs to, and counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from cachekd.codecs import CodecHeader
from cachekd.data.digests import bytes_digest
from cachekd.data.packed import Keys
from cachekd.errors import CorruptCache, StoreError
from cachekd.store.attention_shards import AttentionFacts, AttentionShard
from cachekd.store.committed import Committed, UnitKey
from cachekd.store.identity import Identity
from cachekd.store.io import Location
from cachekd.store.layout import attention_name, prior_name, shard_name, unit_name
from cachekd.store.plan import Plan
from cachekd.store.priors import Priors
from cachekd.store.problems import Problem, file_problem, problem_of
from cachekd.store.shards import Shard, ShardFacts
from cachekd.store.state import UnitRecord
from cachekd.store.tables import LOGITS, footer_bytes, open_table

_DISTRIBUTIONS = "records that are distributions"


@dataclass(slots=True)
class ShardsReport:
    """What was found in shards and priors.

    Attributes:
        problems: what is wrong.
        files: files of which at least the size was looked at.
        shards: logits shards whose digest was checked and whose records were decoded.
        records: records that were decoded.
    """

    problems: list[Problem] = field(default_factory=list)
    files: int = 0
    shards: int = 0
    records: int = 0


def check_shards(
    location: Location,
    identity: Identity,
    committed: Committed,
    chosen: Collection[str],
    step: Callable[[], None],
) -> ShardsReport:
    """Check the shards of all commit records, and the priors that they need.

    Args:
        location: the cache.
        identity: of the cache.
        committed: good plans and records.
        chosen: digests of the logits shards to decode in whole, with their attention; of the
            others the size is checked.
        step: called after each record.
    """
    checker = _Checker(location, identity, step)
    records = committed.records()
    checker.check_priors({r.shard.prior for r in records.values() if r.shard.prior})
    for key, record in records.items():
        checker.check_unit(key, record, committed.state.plans.get(key[0]), chosen)
    return checker.report


class _Checker:
    def __init__(self, location: Location, identity: Identity, step: Callable[[], None]) -> None:
        self.report = ShardsReport()
        self._location = location
        self._identity = identity
        self._step = step
        self._priors = Priors(location)
        self._lost_priors: set[str] = set()
        self._files: dict[str, bool] = {}
        self._keys: dict[tuple[ShardFacts, AttentionFacts | None], Keys | None] = {}

    def check_priors(self, digests: set[str]) -> None:
        """Read each prior; one that is lost is the problem of no shard that it packs."""
        for digest in sorted(digests):
            name = prior_name(digest)
            self.report.files += 1
            problem = file_problem(self._location, name, digest=digest)
            if problem is None:
                try:
                    self._priors.get(digest)
                except StoreError as error:
                    problem = problem_of(self._location, name, error, expected="a prior")
            if problem is not None:
                self.report.problems.append(problem)
                self._lost_priors.add(digest)

    def check_unit(
        self, key: UnitKey, record: UnitRecord, plan: Plan | None, chosen: Collection[str]
    ) -> None:
        """Check the shards of a unit, each once, and that they are those of its plan."""
        facts, attention = record.shard, record.attention
        decode = facts.digest in chosen
        whole = self._file(key, shard_name(facts.digest), facts, decode)
        if attention is not None:
            name = attention_name(attention.digest)
            whole = self._file(key, name, attention, decode) and whole
        if not (decode and whole) or facts.prior in self._lost_priors:
            return
        content = (facts, attention)
        if content not in self._keys:
            self._keys[content] = self._decoded(key, record)
        keys = self._keys[content]
        if keys is not None and plan is not None and keys != sorted(plan.unit_keys(key[1])):
            self._misfit(key, "the keys of its unit", "a shard with others")

    def _file(
        self, key: UnitKey, name: str, facts: ShardFacts | AttentionFacts, decode: bool
    ) -> bool:
        """Whether a file has its size, and where it is decoded its digest."""
        if name not in self._files:
            self.report.files += 1
            digest = facts.digest if decode else None
            problem = file_problem(
                self._location, name, size=facts.bytes, digest=digest, plan=key[0], unit=key[1]
            )
            self._files[name] = problem is None
            if problem is not None:
                self.report.problems.append(problem)
        return self._files[name]

    def _decoded(self, key: UnitKey, record: UnitRecord) -> Keys | None:
        """Keys of a unit's shards in row order, if every record of them is sound."""
        facts, attention = record.shard, record.attention
        name = shard_name(facts.digest)
        self.report.shards += 1
        try:
            if not self._fits(key, facts):
                return None
            capture_id = self._identity.capture_id
            shard = Shard(self._location, facts, capture_id, priors=self._priors)
            tokens, entries = self._records(shard)
            if attention is not None:
                name = attention_name(attention.digest)
                found = self._attention(shard, attention)
                if found != (attention.queries, attention.tokens):
                    expected = f"{attention.queries} query rows of {attention.tokens} tokens"
                    self._misfit(key, expected, f"{found[0]} of {found[1]}")
                    return None
        except StoreError as error:
            self._wrong(key, name, error)
            return None
        if (tokens, entries) != (facts.tokens, facts.entries):
            expected = f"{facts.tokens} tokens and {facts.entries} entries"
            self._misfit(key, expected, f"{tokens} and {entries}")
            return None
        return Keys.of(shard.keys())

    def _fits(self, key: UnitKey, facts: ShardFacts) -> bool:
        """Whether rows, prior and footer of a shard, whose digest fits, are as its record says."""
        name = shard_name(facts.digest)
        data = self._location.map(name)
        table = open_table(name, data, LOGITS)
        header = CodecHeader.from_json((table.schema.metadata or {}).get(b"codec", b""))
        found = (sum(table.rows), header.prior, bytes_digest(footer_bytes(data)))
        said = (facts.rows, facts.prior, facts.footer)
        if found != said:
            self._misfit(key, f"rows, prior and footer {said}", f"{found}")
        return found == said

    def _records(self, shard: Shard) -> tuple[int, int]:
        """Tokens and entries of a shard whose records are sound."""
        tokens = entries = 0
        for row in range(len(shard)):
            found = shard.check_record(row)
            tokens, entries = tokens + found[0], entries + found[1]
            self.report.records += 1
            self._step()
        return tokens, entries

    def _attention(self, shard: Shard, facts: AttentionFacts) -> tuple[int, int]:
        """Query rows and tokens of an attention shard whose records are sound."""
        assert self._identity.attention_id is not None, "records of other kinds are not good"
        attention = AttentionShard(self._location, facts, self._identity.attention_id)
        if attention.keys() != shard.keys():
            raise CorruptCache(f"other documents than {shard.name} has")
        tokens = queries = 0
        for row in range(len(attention)):
            input_ids = shard.record(row)[1]
            tokens += len(input_ids)
            queries += attention.check_record(row, input_ids)
        return queries, tokens

    def _wrong(self, key: UnitKey, name: str, error: StoreError) -> None:
        problem = problem_of(
            self._location, name, error, expected=_DISTRIBUTIONS, plan=key[0], unit=key[1]
        )
        self.report.problems.append(problem)

    def _misfit(self, key: UnitKey, expected: str, found: str) -> None:
        """A record that says of its shard what is not so."""
        self.report.problems.append(
            Problem(
                file=unit_name(*key),
                expected=f"a shard with {expected}, as this record says",
                found=found,
                plan=key[0],
                unit=key[1],
            )
        )
