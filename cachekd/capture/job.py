"""A job: samples, plan and what is missing, frozen before any teacher call."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cachekd.capture.documents import Documents, ResponseRows, documents_of, response_rows
from cachekd.capture.planning import plan_of
from cachekd.capture.writing import Writing
from cachekd.codecs import CodecHeader
from cachekd.codecs._priors import Prior
from cachekd.config import PrecomputeConfig
from cachekd.data.attention import AttentionSpec
from cachekd.data.attention_budget import at_most
from cachekd.data.digests import bytes_digest
from cachekd.data.samples import Prepared
from cachekd.data.spool import SpooledFiles
from cachekd.store.commit import Sink
from cachekd.store.identity import Identity
from cachekd.store.io import Location
from cachekd.store.plan import Plan, PlannedBatch
from cachekd.store.state import CacheState
from cachekd.teachers import Selection, TeacherFacts
from cachekd.types import Int64, TopKLogits

# What Parquet adds, at most: footer and pages of a shard, headers of a record.
_SHARD_BYTES = 32 << 10
_RECORD_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run that is ready to start.

    Attributes:
        documents: the samples of the data, and their token ids by key.
        wanted: rows to capture by key, or None for all rows of all keys.
        attention_wanted: the same for query rows of the attention.
        plan, plan_digest: the frozen plan, and the digest of its bytes.
        files: samples shards to write, by digest.
        todo: numbers of the plan's units that are not committed.
        cached: distinct keys of the data that are cached already.
        new_samples: samples that the cache does not hold yet.
        known: whether the cache has the plan already.
        restored: whether it had it, and the file is lost: it is written again.
        damaged_priors: priors that are there and damaged; units that need one count as missing.
        prior, prior_digest: what shards are packed with; the plan's, unless that was lost.
        scored: batches that were scored already, with their targets and number of pieces.
        writing: responses that the teacher writes; while some are missing, the documents, their
            plan and its units are stand-ins of the greatest length.
    """

    config: PrecomputeConfig
    facts: TeacherFacts
    identity: Identity
    location: Location
    documents: Documents
    wanted: ResponseRows | None
    attention_wanted: ResponseRows | None
    plan: Plan
    plan_digest: str
    files: SpooledFiles
    todo: Sequence[int]
    cached: int
    new_samples: int
    known: bool
    restored: bool = False
    damaged_priors: frozenset[str] = frozenset()
    prior: Prior | None = None
    prior_digest: str | None = None
    scored: dict[PlannedBatch, tuple[list[TopKLogits], int]] = field(default_factory=dict)
    writing: Writing | None = None

    @property
    def selection(self) -> Selection:
        """What the teacher is asked to keep."""
        kept = selection_of(self.identity)
        return replace(kept, skip_bad=self.config.on_bad_targets == "skip")

    @property
    def header(self) -> CodecHeader:
        """How shards are encoded."""
        return CodecHeader(
            codec=self.config.codec,
            vocab_size=self.identity.source["vocab_size"],
            values=self.identity.capture["logprobs"]["values"],
            step=self.identity.capture["logprobs"].get("step"),
            samples=self.selection.samples,
            tau=self.selection.tau,
            temperatures=_further(self.identity),
            prior=self.prior_digest,
        )

    def packed_with(self, prior: Prior) -> Job:
        """The same job, its shards packed with this prior; a plan that is new names it."""
        prior_digest = bytes_digest(prior.dump())
        packed = replace(self, prior=prior, prior_digest=prior_digest)
        if self.known:
            return packed
        plan = replace(self.plan, prior=prior_digest)
        return replace(packed, plan=plan, plan_digest=plan.dump()[0])

    @property
    def plan_data(self) -> bytes:
        """Bytes of the plan, made when they are asked for: they may be many."""
        return self.plan.dump()[1]

    @property
    def attention(self) -> AttentionSpec | None:
        """What is kept of the attention, if any."""
        return attention_of(self.identity)

    @property
    def sink(self) -> Sink:
        """Where units go."""
        return Sink(
            url=self.location.target,
            plan=self.plan_digest,
            capture_id=self.identity.capture_id,
            header=self.header,
            attention=self.attention,
            attention_id=self.identity.attention_id,
        )

    def unit_tokens(self, number: int) -> int:
        """Tokens of a unit, without padding."""
        return int(self.unit_lengths(number).sum())

    def unit_lengths(self, number: int) -> Int64:
        """Tokens of each document of a unit."""
        return self.documents.lengths_of(self.plan.packed_keys(number))

    def bytes_at_most(self) -> int:
        """Upper bound of what the missing units will take on disk."""
        keys = sum(len(self.plan.packed_keys(number)) for number in self.todo)
        files = len(self.todo) * _SHARD_BYTES + keys * _RECORD_BYTES
        logits = sum(map(self.unit_tokens, self.todo)) * _bytes_per_token(self.identity)
        return logits + self._attention_at_most() + files

    def _attention_at_most(self) -> int:
        spec = self.attention
        if spec is None:
            return 0
        todo = np.array([n for number in self.todo for n in self.unit_lengths(number)], np.int64)
        lengths, counts = np.unique(todo, return_counts=True)
        each = (at_most(spec, int(length)) for length in lengths)
        return sum(int(count) * size for count, size in zip(counts, each, strict=True))


def freeze(
    config: PrecomputeConfig,
    facts: TeacherFacts,
    identity: Identity,
    location: Location,
    state: CacheState | None,
    prepared: Prepared,
    writing: Writing | None = None,
) -> Job:
    """Find the plan of this run in the cache, or make one of what the cache lacks.

    Raises:
        DataError: documents are cached with fewer rows than this data trains on.
    """
    documents = documents_of(prepared.samples)
    written = writing.provenance() if writing else None
    width = _bytes_per_token(identity, int(documents.lengths.max()))
    planned = plan_of(config, identity, location, state, prepared, written, documents, width)
    digest, _ = planned.plan.dump()
    done = planned.done()
    attention = attention_of(identity)
    wanted = functools.cache(lambda: response_rows(documents, planned.held, done))
    return Job(
        config=config,
        facts=facts,
        identity=identity,
        location=location,
        documents=documents,
        wanted=wanted() if identity.capture["rows"] != "all" else None,
        attention_wanted=wanted() if attention and attention.rows != "all" else None,
        plan=planned.plan,
        plan_digest=digest,
        files=planned.files,
        todo=planned.todo(digest, done),
        cached=int((done.find(documents.keys.take(documents.firsts)) >= 0).sum()),
        new_samples=planned.new_samples,
        known=planned.state is not None and digest in planned.state.plans,
        restored=planned.restored,
        damaged_priors=planned.damaged_priors,
        writing=writing,
    )


def selection_of(identity: Identity) -> Selection:
    """What a capture asks a teacher to keep."""
    kept, values = identity.capture["selection"], identity.capture["logprobs"]
    # Levels uniform in sqrt(p): what rounds to level 0 belongs to the tail.
    floor = (values["step"] / 2) ** 2 if values["values"] == "sqrt" else 0.0
    return Selection(
        k=kept.get("k", 0),
        p=kept.get("p", 1.0),
        min_k=kept.get("min_k", 1),
        vocab_size=identity.source["vocab_size"],
        temperatures=_further(identity),
        min_prob=floor,
        tau=kept.get("tau", 0.0),
        samples=kept.get("samples", 0),
        seed=kept.get("seed", 0),
    )


def attention_of(identity: Identity) -> AttentionSpec | None:
    """What a capture keeps of the attention, if any."""
    return None if identity.attention is None else AttentionSpec.from_json(identity.attention)


def _further(identity: Identity) -> tuple[float, ...]:
    """Captured temperatures other than 1."""
    return tuple(float(t) for t in identity.capture["temperatures"] if t != 1.0)


def _bytes_per_token(identity: Identity, longest: int = 0) -> int:
    """Upper bound of the bytes stored for a token: logits, and attention of documents so long."""
    spec = attention_of(identity) if longest else None
    attention = at_most(spec, longest) // longest + 1 if spec else 0
    selection = selection_of(identity)
    # Codes, lengths and gaps of runs of one entry each, every gap an escape.
    entry = (
        5
        + {"float16": 2, "float32": 4, "sqrt": 2, "log": 3}[identity.capture["logprobs"]["values"]]
    )
    scalars = 4 + 4 * (4 + len(identity.capture["temperatures"]))
    # A threshold sample of the tail has at most 1 / tau entries in expectation, and one more.
    sampled = selection.samples + (int(1 / selection.tau) + 1 if selection.tau else 0)
    return int((min(selection.k, selection.vocab_size) + sampled) * entry + scalars) + attention
