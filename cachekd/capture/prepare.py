"""From settings to a frozen job: who the teacher is, which samples, what is cached, what is left.

Everything that can be wrong with data, tokenizer, identity or disk is found here, before a model
is loaded and before anything is written.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd import __version__
from cachekd.codecs import CodecHeader
from cachekd.config import PrecomputeConfig
from cachekd.data.alignment import LossMask, trained_rows
from cachekd.data.digests import bytes_digest, json_id
from cachekd.data.samples import Prepared, prepare
from cachekd.data.sources import read_rows
from cachekd.errors import DataError, StoreError, TeacherError
from cachekd.plugins import find
from cachekd.store.identity import (
    Identity,
    TokenizerFacts,
    capture_id,
    capture_spec,
    differences,
    refuse_difference,
    source_facts,
    tokenizer_facts,
)
from cachekd.store.io import Location
from cachekd.store.layout import CACHE
from cachekd.store.plan import Plan, cut, run_digest
from cachekd.store.samples import SHARD_ROWS, SampleTable, keys_of, sample_ids, write_samples
from cachekd.store.seal import load_samples
from cachekd.store.state import CacheState, read_state
from cachekd.teachers import Selection, TeacherFacts
from cachekd.types import Int32, Sample

CODEC = "plain"
_DISK_RESERVE = 64 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run that is ready to start.

    Attributes:
        documents: token ids by key, for every key of the data.
        wanted: rows to capture by key, or None for all rows of all keys.
        plan: the frozen plan, and its digest and bytes.
        files: samples shards to write, by digest.
        todo: numbers of the plan's units that are not committed.
        cached: distinct keys of the data that are cached already.
        new_samples: samples that the cache does not hold yet.
    """

    config: PrecomputeConfig
    facts: TeacherFacts
    identity: Identity
    location: Location
    samples: Sequence[Sample]
    documents: Mapping[bytes, Int32]
    wanted: Mapping[bytes, NDArray[np.bool_]] | None
    plan: Plan
    plan_digest: str
    plan_data: bytes
    files: Mapping[str, Any]
    todo: Sequence[int]
    cached: int
    new_samples: int

    @property
    def selection(self) -> Selection:
        """What the teacher is asked to keep."""
        kept = self.identity.capture["selection"]
        return Selection(
            k=kept["k"],
            p=kept["p"],
            min_k=kept["min_k"],
            vocab_size=self.identity.source["vocab_size"],
            temperatures=_further(self.identity),
        )

    @property
    def header(self) -> CodecHeader:
        """How shards are encoded."""
        return CodecHeader(
            codec=CODEC,
            vocab_size=self.identity.source["vocab_size"],
            logprob_dtype=self.identity.capture["logprobs"],
            temperatures=_further(self.identity),
        )

    def unit_tokens(self, number: int) -> int:
        """Tokens of a unit, without padding."""
        return sum(len(self.documents[key]) for key in self.plan.unit_keys(number))

    def bytes_at_most(self) -> int:
        """Upper bound of what the missing units will take on disk."""
        return sum(map(self.unit_tokens, self.todo)) * _bytes_per_token(self.identity)


def prepare_job(config: PrecomputeConfig) -> Job:
    """Check and freeze a run.

    Raises:
        CachekdError: whatever is wrong, before anything is loaded or written.
    """
    location = Location(config.cache)
    backend = find("teachers", config.backend)
    facts: TeacherFacts = backend.identify(config)
    tokenizer_identity = tokenizer_facts(facts.tokenizer_folder)
    tokenizer = _load_tokenizer(config, facts)
    state = read_state(location, skip_broken_units=True) if location.exists(CACHE) else None
    clock = _clock(state)
    identity = _identity(config, facts, tokenizer_identity, tokenizer, clock)
    if state is not None:
        _check_same(state.identity, identity, location)
        identity = state.identity
    location.check_writable()
    prepared = prepare(
        read_rows(config),
        config,
        tokenizer,
        context_length=facts.context_length,
        vocab_size=tokenizer_identity.vocab_size,
        clock=clock,
    )
    job = _freeze(config, facts, identity, location, state, prepared)
    _check_disk(job)
    return job


def _load_tokenizer(config: PrecomputeConfig, facts: TeacherFacts) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            facts.tokenizer_folder, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise TeacherError(
            f"the tokenizer in {facts.tokenizer_folder} cannot be loaded: {error}"
        ) from error


def _clock(state: CacheState | None) -> datetime:
    """Now, or the time that the cache's first run saw.

    A template that prints the date must give the same tokens on every day.
    """
    stored = state.identity.provenance.get("clock") if state else None
    return datetime.fromisoformat(stored) if stored else datetime.now().replace(microsecond=0)


def _identity(
    config: PrecomputeConfig,
    facts: TeacherFacts,
    tokenizer_identity: TokenizerFacts,
    tokenizer: Any,
    clock: datetime,
) -> Identity:
    source = source_facts(config, facts, tokenizer_identity)
    capture = capture_spec(config, config.attn_implementation, tokenizer_identity.vocab_size)
    source_id = json_id(source)
    return Identity(
        source_id=source_id,
        source=source,
        capture_id=capture_id(source_id, capture),
        capture=capture,
        provenance={
            "teacher": _public_name(config.teacher),
            "revision": config.revision,
            "tokenizer": _public_name(config.tokenizer),
            "adapter": _public_name(config.adapter),
            "chat_template": _template(config, tokenizer),
            "prompt_template": config.prompt_template,
            "add_eos": config.add_eos,
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "pad_token": tokenizer.pad_token,
            "clock": clock.isoformat(),
            "cachekd": __version__,
        },
    )


def _public_name(name: str | None) -> str | None:
    """A hub id as it is; of a local folder only its last part: paths tell about a machine."""
    return os.path.basename(os.path.abspath(name)) if name and os.path.exists(name) else name


def _template(config: PrecomputeConfig, tokenizer: Any) -> str | None:
    if config.chat_template_path is None:
        template = getattr(tokenizer, "chat_template", None)
        return template if isinstance(template, str) else None
    try:
        with open(config.chat_template_path, encoding="utf-8") as stream:
            return stream.read()
    except OSError as error:
        raise DataError(f"chat_template_path: {error}") from error


def _check_same(stored: Identity, asked: Identity, location: Location) -> None:
    """Refuse another identity; warn of another provenance."""
    refuse_difference(
        "precompute",
        {"source": stored.source, "capture": stored.capture},
        {"source": asked.source, "capture": asked.capture},
        f"the cache {location.url}",
        "this run",
    )
    ignored = {"cachekd"}
    left, right = (
        {key: value for key, value in identity.provenance.items() if key not in ignored}
        for identity in (stored, asked)
    )
    for line in differences(left, right):
        _log.warning("not as in the cache's first run (cache / this run): %s", line)


def _freeze(
    config: PrecomputeConfig,
    facts: TeacherFacts,
    identity: Identity,
    location: Location,
    state: CacheState | None,
    prepared: Prepared,
) -> Job:
    samples = prepared.samples
    keys = keys_of(samples)
    ids = sample_ids(samples, keys)
    documents = {key: sample.input_ids for key, sample in zip(keys, samples, strict=True)}
    done = state.done_keys() if state else set()
    held = load_samples(location, state.samples()) if state else None
    wanted = None
    if identity.capture["rows"] == "response":
        wanted = _response_rows(samples, keys, held, done)
    settings = {
        "batch_tokens": config.batch_tokens,
        "sort_window": config.sort_window,
        "unit_tokens": config.unit_tokens,
    }
    run = run_digest(ids, identity.capture_id, settings)
    known = set(held.ids) if held else set()
    fresh = [i for i, sample_id in enumerate(ids) if sample_id not in known]
    found = next(
        (plan for plan in (state.plans if state else {}).values() if plan.run == run), None
    )
    if found:
        plan, files = found, {}
    else:
        files = _samples_files(samples, keys, ids, fresh)
        missing = [key for key in documents if key not in done]
        order, units = cut(
            [len(documents[key]) for key in missing],
            bytes_per_token=_bytes_per_token(identity),
            **settings,
        )
        plan = Plan(
            run=run,
            capture_id=identity.capture_id,
            sequence=1 + max((p.sequence for p in state.plans.values()), default=0) if state else 1,
            keys=tuple(missing[i] for i in order),
            units=units,
            threads=config.threads or os.cpu_count() or 1,
            samples=tuple(files),
            skipped=prepared.skipped,
            changed=prepared.changed,
        )
    digest, data = plan.dump()
    committed = state.units if state else {}
    todo = [
        n
        for n in range(len(plan.units))
        if (digest, n) not in committed and not done.issuperset(plan.unit_keys(n))
    ]
    return Job(
        config=config,
        facts=facts,
        identity=identity,
        location=location,
        samples=samples,
        documents=documents,
        wanted=wanted,
        plan=plan,
        plan_digest=digest,
        plan_data=data,
        files=files,
        todo=todo,
        cached=sum(key in done for key in documents),
        new_samples=len(fresh),
    )


def _samples_files(
    samples: Sequence[Sample], keys: Sequence[bytes], ids: Sequence[bytes], fresh: Sequence[int]
) -> dict[str, Any]:
    files = {}
    for start in range(0, len(fresh), SHARD_ROWS):
        part = fresh[start : start + SHARD_ROWS]
        data = write_samples(
            [samples[i] for i in part], [keys[i] for i in part], [ids[i] for i in part], part
        )
        files[bytes_digest(data)] = data
    return files


def _response_rows(
    samples: Sequence[Sample],
    keys: Sequence[bytes],
    held: SampleTable | None,
    done: set[bytes],
) -> dict[bytes, NDArray[np.bool_]]:
    """Rows to capture by key: those that any sample of the key trains on.

    Raises:
        DataError: a key is cached with fewer rows than the data wants now.
    """
    wanted: dict[bytes, NDArray[np.bool_]] = {}
    for sample, key in zip(samples, keys, strict=True):
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
            "(--rows response, other roles). Use a new cache, with --rows all"
        )
    return wanted


def _further(identity: Identity) -> tuple[float, ...]:
    """Captured temperatures other than 1."""
    return tuple(float(t) for t in identity.capture["temperatures"] if t != 1.0)


def _bytes_per_token(identity: Identity) -> int:
    """Upper bound of the bytes stored for a token."""
    entry = 3 + (2 if identity.capture["logprobs"] == "float16" else 4)
    scalars = 4 + 4 * (4 + len(identity.capture["temperatures"]))
    return int(identity.capture["selection"]["k"] * entry + scalars)


def _check_disk(job: Job) -> None:
    needed, free = job.bytes_at_most() + _DISK_RESERVE, job.location.free_bytes()
    if job.todo and job.config.check_disk and free is not None and needed > free:
        raise StoreError(
            f"the disk of {job.location.url} has {free / 1e9:.2f} GB free; this run may need up to "
            f"{needed / 1e9:.2f} GB. Free space, lower --logits-top-k, or pass --no-check-disk if "
            "you know that most positions keep fewer entries"
        )
