"""Rollouts as a cache: what the student wrote, with the teacher's rows, to train on again.

In: finished rollouts as samples, a live teacher behind its score cache. Out: a sealed cache like
any other, of response rows, in float32.

Targets are the teacher's own head alone: ids that were given beside it depend on the student of
that moment, and a cache holds one kind of row. They are asked of the score cache again, without
given ids; where the run gave none, all of them are there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cachekd import __version__
from cachekd.codecs import CodecHeader
from cachekd.config import SelectionConfig
from cachekd.data.alignment import response_rows
from cachekd.data.digests import bytes_digest, json_id
from cachekd.data.packed import Keys, Places
from cachekd.errors import ConfigError
from cachekd.rollouts import Scores
from cachekd.rollouts.teacher import FoundTeacher, LiveTeacher
from cachekd.store.commit import ScoredUnit, Sink, write_unit
from cachekd.store.identity import Identity, capture_id, capture_spec, refuse_difference
from cachekd.store.identity_files import has_cache, read_identity, write_identity
from cachekd.store.io import Location
from cachekd.store.layout import plan_name, samples_name
from cachekd.store.plan import Plan, cut, run_digest
from cachekd.store.samples import SHARD_ROWS, keys_of, sample_ids, write_samples
from cachekd.store.seal import load_samples, seal
from cachekd.store.state import CacheState, read_state
from cachekd.types import Int32, Role, Sample, UInt8

_CUTTING = {"batch_tokens": 1 << 14, "sort_window": 1 << 12, "unit_tokens": 1 << 18}
_ENTRY_BYTES, _SCALARS_BYTES = 7, 32


def sample_of(
    input_ids: Int32, prompt_roles: UInt8, domain: str, weight: float, row: int
) -> Sample:
    """A prompt and a response of the student as a sample of data.

    Args:
        input_ids: tokens of both, int32 [L].
        prompt_roles: who wrote the prompt's tokens, uint8 [P].
        domain: label of the sample that the prompt is of.
        weight: weight of that sample.
        row: its place in the data.
    """
    answer = len(input_ids) - len(prompt_roles)
    return Sample(
        input_ids=input_ids,
        roles=np.concatenate([prompt_roles, np.full(answer, Role.ASSISTANT, np.uint8)]),
        prompt_length=len(prompt_roles),
        domain=domain,
        weight=weight,
        source="rollouts",
        row=row,
    )


def identity_of(teacher: LiveTeacher | FoundTeacher, provenance: Mapping[str, Any]) -> Identity:
    """Identity of a cache of rollouts: the live teacher, and what is kept of its response rows."""
    kept = SelectionConfig(
        logits_selection="top_k",
        logits_top_k=teacher.selection.k,
        temperatures=(1.0, *teacher.selection.temperatures),
        rows="response",
        logits_values="float32",
    )
    source_id = json_id(teacher.source)
    attention = teacher.facts["attn_implementation"]
    capture = capture_spec(kept, attention, teacher.selection.vocab_size)
    return Identity(
        source_id=source_id,
        source=teacher.source,
        capture_id=capture_id(source_id, capture),
        capture=capture,
        provenance={**provenance, "responses": "student", "cachekd": __version__},
    )


def check_keep(url: str, teacher: FoundTeacher) -> None:
    """Refuse a place that rollouts of this teacher cannot be added to.

    Raises:
        MismatchError: the cache there has another teacher or capture; names each field.
        StoreError: nothing can be written there.
    """
    location = Location(url)
    location.check_writable()
    if has_cache(location):
        _refuse_other(location, identity_of(teacher, {}))


def keep(
    samples: Sequence[Sample],
    scores: Scores,
    teacher: LiveTeacher,
    url: str,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Add samples to a cache of rollouts, which is made if it is not there, and seal it.

    Args:
        samples: see `sample_of`; samples that the cache holds are left out, and equal token ids
            are scored once.
        scores: the teacher behind its score cache.
        teacher: who it is, and what is kept.
        url: where the cache is, or is to be.
        provenance: how prompts became tokens: template, EOS, clock, and names.

    Returns:
        samples, tokens and bytes of the cache, and how many samples are new.

    Raises:
        MismatchError: the cache there has another teacher or capture; names each field.
        ConfigError: there are no samples, or they have no response.
        TeacherError, StoreError: see `Scores.score` and `Location.create`.
    """
    _check(samples)
    location, identity = Location(url), identity_of(teacher, provenance)
    state = _opened(location, identity)
    keys = keys_of(samples)
    ids = sample_ids(samples, keys)
    held = load_samples(location, state.samples(), state.written()).ids
    fresh = np.flatnonzero(Places(held).find(ids) < 0)
    firsts = Places(keys).firsts()
    missing = firsts[Places(state.done_keys()).find(keys.take(firsts)) < 0]
    if len(fresh) or len(missing):
        shards = _write_samples(location, samples, keys, ids, fresh)
        lengths = [len(samples[int(i)].input_ids) for i in missing]
        width = _SCALARS_BYTES + _ENTRY_BYTES * teacher.selection.k
        order, units = cut(lengths, bytes_per_token=width, **_CUTTING)
        plan = Plan(
            run=run_digest(ids, identity.capture_id, _CUTTING),
            capture_id=identity.capture_id,
            sequence=1 + max((plan.sequence for plan in state.plans.values()), default=0),
            keys=keys.take(missing[order]),
            units=units,
            threads=int(teacher.teacher.numerics.get("threads", 1)),
            samples=shards,
            skipped={},
            changed={},
        )
        rows = _first_rows(samples, keys)
        work = [(samples[int(i)].input_ids, rows[keys[int(i)]]) for i in missing[order]]
        _write_units(location, identity, plan, work, scores, teacher.teacher.numerics)
    sealed = seal(location)
    return {"cache": url, "new_samples": len(fresh), **sealed.totals}


def _check(samples: Sequence[Sample]) -> None:
    if not samples:
        raise ConfigError("keep_rollouts: there is no rollout to keep; leave the option out")
    for sample in samples:
        if not 0 < (sample.prompt_length or 0) < len(sample.input_ids):
            raise ConfigError(
                f"keep_rollouts: expected a prompt and a response in {len(sample.input_ids)} "
                f"tokens; found a prompt of {sample.prompt_length}"
            )


def _opened(location: Location, identity: Identity) -> CacheState:
    """What is committed there, of this identity."""
    location.check_writable()
    if not has_cache(location):
        write_identity(location, identity)
    _refuse_other(location, identity)  # another process may be first
    return read_state(location, skip_broken_units=True)


def _refuse_other(location: Location, identity: Identity) -> None:
    refuse_difference(
        "keep_rollouts",
        read_identity(location).facts(),
        identity.facts(),
        f"the cache {location.url}",
        "this run",
    )


def _write_samples(
    location: Location, samples: Sequence[Sample], keys: Keys, ids: Keys, fresh: np.ndarray
) -> tuple[str, ...]:
    """Digests of the samples shards of new samples."""
    digests = []
    for start in range(0, len(fresh), SHARD_ROWS):
        part = fresh[start : start + SHARD_ROWS]
        own = (samples[int(i)] for i in part)
        data = write_samples(own, keys.take(part), ids.take(part), part)
        digests.append(bytes_digest(data))
        location.keep(samples_name(digests[-1]), data, digests[-1])
    return tuple(digests)


def _first_rows(samples: Sequence[Sample], keys: Keys) -> dict[bytes, int]:
    """First response row of each key: of equal tokens that of the shortest prompt."""
    found: dict[bytes, int] = {}
    for key, sample in zip(keys, samples, strict=True):
        assert sample.prompt_length, "it was checked"
        row = response_rows(sample.prompt_length, 1).start
        found[key] = min(row, found.get(key, row))
    return found


def _write_units(
    location: Location,
    identity: Identity,
    plan: Plan,
    work: Sequence[tuple[Int32, int]],
    scores: Scores,
    numerics: Mapping[str, Any],
) -> None:
    """Write the plan, then unit after unit; tokens and first rows are in the plan's order."""
    digest, data = plan.dump()
    location.keep(plan_name(digest), data, digest)
    temperatures = tuple(float(t) for t in identity.capture["temperatures"] if t != 1.0)
    header = CodecHeader(
        codec="plain",
        vocab_size=identity.source["vocab_size"],
        values=identity.capture["logprobs"]["values"],
        temperatures=temperatures,
    )
    sink = Sink(url=location.target, plan=digest, capture_id=identity.capture_id, header=header)
    for number, unit in enumerate(plan.units):
        started = time.monotonic()
        keys = plan.unit_keys(number)
        first = unit[0].first
        own, first_rows = zip(*work[first : first + len(keys)], strict=True)
        scored = ScoredUnit(
            number=number,
            keys=keys,
            documents=own,
            targets=scores.score(own, first_rows),
            numerics=dict(numerics),
            seconds=time.monotonic() - started,
        )
        write_unit(sink, location, scored, None)
