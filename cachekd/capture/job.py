"""A job: samples, plan and what is missing, frozen before any teacher call."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.codecs import CodecHeader
from cachekd.codecs._priors import Prior
from cachekd.config import PrecomputeConfig
from cachekd.data.alignment import LossMask, trained_rows
from cachekd.data.attention import AttentionSpec
from cachekd.data.attention_budget import at_most
from cachekd.data.digests import bytes_digest
from cachekd.data.samples import Prepared
from cachekd.errors import DataError
from cachekd.store.commit import Sink
from cachekd.store.identity import Identity
from cachekd.store.io import Location
from cachekd.store.plan import Plan, PlannedBatch, cut, run_digest
from cachekd.store.samples import SHARD_ROWS, SampleTable, keys_of, sample_ids, write_samples
from cachekd.store.seal import load_samples
from cachekd.store.state import CacheState
from cachekd.teachers import Selection, TeacherFacts
from cachekd.types import Int32, Sample, TopKLogits

# What Parquet adds, at most: footer and pages of a shard, headers of a record.
_SHARD_BYTES = 32 << 10
_RECORD_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run that is ready to start.

    Attributes:
        documents: token ids by key, for every key of the data.
        wanted: rows to capture by key, or None for all rows of all keys.
        attention_wanted: the same for query rows of the attention.
        plan: the frozen plan, and its digest and bytes.
        files: samples shards to write, by digest.
        todo: numbers of the plan's units that are not committed.
        cached: distinct keys of the data that are cached already.
        new_samples: samples that the cache does not hold yet.
        known: whether the cache has the plan already.
        prior: what the plan's shards are packed with.
        scored: batches that were scored already, with their targets and number of pieces.
    """

    config: PrecomputeConfig
    facts: TeacherFacts
    identity: Identity
    location: Location
    samples: Sequence[Sample]
    documents: Mapping[bytes, Int32]
    wanted: Mapping[bytes, NDArray[np.bool_]] | None
    attention_wanted: Mapping[bytes, NDArray[np.bool_]] | None
    plan: Plan
    plan_digest: str
    plan_data: bytes
    files: Mapping[str, Any]
    todo: Sequence[int]
    cached: int
    new_samples: int
    known: bool
    prior: Prior | None = None
    scored: dict[PlannedBatch, tuple[list[TopKLogits], int]] = field(default_factory=dict)

    @property
    def selection(self) -> Selection:
        """What the teacher is asked to keep."""
        return selection_of(self.identity)

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
            prior=self.plan.prior,
        )

    def packed_with(self, prior: str | None) -> Job:
        """The same job, its shards packed with this prior."""
        plan = replace(self.plan, prior=prior)
        digest, data = plan.dump()
        return replace(self, plan=plan, plan_digest=digest, plan_data=data)

    @property
    def attention(self) -> AttentionSpec | None:
        """What is kept of the attention, if any."""
        return attention_of(self.identity)

    @property
    def sink(self) -> Sink:
        """Where units go."""
        return Sink(
            url=self.location.url,
            plan=self.plan_digest,
            capture_id=self.identity.capture_id,
            header=self.header,
            attention=self.attention,
            attention_id=self.identity.attention_id,
        )

    def unit_tokens(self, number: int) -> int:
        """Tokens of a unit, without padding."""
        return sum(len(self.documents[key]) for key in self.plan.unit_keys(number))

    def bytes_at_most(self) -> int:
        """Upper bound of what the missing units will take on disk."""
        keys = sum(len(self.plan.unit_keys(number)) for number in self.todo)
        files = len(self.todo) * _SHARD_BYTES + keys * _RECORD_BYTES
        logits = sum(map(self.unit_tokens, self.todo)) * _bytes_per_token(self.identity)
        return logits + self._attention_at_most() + files

    def _attention_at_most(self) -> int:
        spec = self.attention
        if spec is None:
            return 0
        todo = [key for number in self.todo for key in self.plan.unit_keys(number)]
        return sum(at_most(spec, len(self.documents[key])) for key in todo)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Keyed:
    """Prepared samples with their keys and ids."""

    samples: Sequence[Sample]
    keys: Sequence[bytes]
    ids: Sequence[bytes]


def freeze(
    config: PrecomputeConfig,
    facts: TeacherFacts,
    identity: Identity,
    location: Location,
    state: CacheState | None,
    prepared: Prepared,
) -> Job:
    """Find the plan of this run in the cache, or make one of what the cache lacks.

    Raises:
        DataError: documents are cached with fewer rows than this data trains on.
    """
    keys = keys_of(prepared.samples)
    data = _Keyed(samples=prepared.samples, keys=keys, ids=sample_ids(prepared.samples, keys))
    documents = {key: sample.input_ids for key, sample in zip(keys, data.samples, strict=True)}
    done = state.done_keys() if state else set()
    held = load_samples(location, state.samples()) if state else None
    known = set(held.ids) if held else set()
    fresh = [i for i, sample_id in enumerate(data.ids) if sample_id not in known]
    plan, files = _plan(config, identity, state, prepared, data, fresh, done)
    digest, plan_data = plan.dump()
    committed = state.units if state else {}
    attention = attention_of(identity)
    return Job(
        config=config,
        facts=facts,
        identity=identity,
        location=location,
        samples=data.samples,
        documents=documents,
        wanted=_response_rows(data, held, done) if identity.capture["rows"] != "all" else None,
        attention_wanted=(
            _response_rows(data, held, done) if attention and attention.rows != "all" else None
        ),
        plan=plan,
        plan_digest=digest,
        plan_data=plan_data,
        files=files,
        todo=[
            n
            for n in range(len(plan.units))
            if (digest, n) not in committed and not done.issuperset(plan.unit_keys(n))
        ],
        cached=sum(key in done for key in documents),
        new_samples=len(fresh),
        known=state is not None and digest in state.plans,
    )


def _plan(
    config: PrecomputeConfig,
    identity: Identity,
    state: CacheState | None,
    prepared: Prepared,
    data: _Keyed,
    fresh: Sequence[int],
    done: set[bytes],
) -> tuple[Plan, dict[str, Any]]:
    """The plan, and the samples shards that have to be written with it."""
    settings = {
        "batch_tokens": config.batch_tokens,
        "sort_window": config.sort_window,
        "unit_tokens": config.unit_tokens,
    }
    run = run_digest(data.ids, identity.capture_id, settings)
    plans = list(state.plans.values()) if state else []
    found = next((plan for plan in plans if plan.run == run), None)
    if found:
        return found, {}
    lengths = {key: len(s.input_ids) for key, s in zip(data.keys, data.samples, strict=True)}
    missing = [key for key in lengths if key not in done]
    order, units = cut(
        [lengths[key] for key in missing],
        bytes_per_token=_bytes_per_token(identity, max(lengths.values())),
        **settings,
    )
    files = _samples_files(data, fresh)
    plan = Plan(
        run=run,
        capture_id=identity.capture_id,
        sequence=1 + max((plan.sequence for plan in plans), default=0),
        keys=tuple(missing[i] for i in order),
        units=units,
        threads=config.threads or os.cpu_count() or 1,
        samples=tuple(files),
        skipped=prepared.skipped,
        changed=prepared.changed,
    )
    return plan, files


def _samples_files(data: _Keyed, fresh: Sequence[int]) -> dict[str, Any]:
    files = {}
    for start in range(0, len(fresh), SHARD_ROWS):
        part = fresh[start : start + SHARD_ROWS]
        shard = write_samples(
            [data.samples[i] for i in part],
            [data.keys[i] for i in part],
            [data.ids[i] for i in part],
            part,
        )
        files[bytes_digest(shard)] = shard
    return files


def _response_rows(
    data: _Keyed, held: SampleTable | None, done: set[bytes]
) -> dict[bytes, NDArray[np.bool_]]:
    """Rows to capture by key: those that any sample of the key trains on.

    Raises:
        DataError: a key is cached with fewer rows than the data wants now.
    """
    wanted: dict[bytes, NDArray[np.bool_]] = {}
    for sample, key in zip(data.samples, data.keys, strict=True):
        rows = trained_rows(sample.roles, sample.prompt_length, LossMask.AUTO)
        wanted[key] = wanted[key] | rows if key in wanted else rows
    captured: dict[bytes, NDArray[np.bool_]] = {}
    for i, key in enumerate(held.keys if held else []):
        assert held is not None
        if key in wanted and key in done:
            prompt = int(held.prompt_lengths[i])
            rows = trained_rows(held.roles(i), None if prompt < 0 else prompt, LossMask.AUTO)
            captured[key] = captured[key] | rows if key in captured else rows
    less = sum(bool((wanted[key] & ~rows).any()) for key, rows in captured.items())
    if less:
        raise DataError(
            f"{less} documents are cached with targets for fewer rows than this data trains on "
            "(--rows or --attention-rows response, other roles). Use a new cache, with --rows all"
        )
    return wanted


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
