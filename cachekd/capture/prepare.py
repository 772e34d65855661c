"""From settings to a frozen job, with everything checked that can be wrong.

Data, tokenizer, identity and disk are looked at here, before a model is loaded and before
anything is written.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from cachekd.capture.attention import beside, refuse_other_kinds, with_attention
from cachekd.capture.identify import (
    bare_identity,
    check_same,
    clock_of,
    load_tokenizer,
    provenance_of,
)
from cachekd.capture.job import Job, freeze
from cachekd.capture.writing import Writing, answered, new_tokens, writing_of
from cachekd.config import PrecomputeConfig
from cachekd.data.samples import prepare
from cachekd.data.sources import read_rows
from cachekd.errors import StoreError
from cachekd.plugins import find
from cachekd.store.identity import Identity
from cachekd.store.identity_files import has_cache, lost_identity, read_identity, write_identity
from cachekd.store.io import Location
from cachekd.store.state import read_state
from cachekd.store.tokenizer import tokenizer_facts
from cachekd.teachers import TeacherFacts

_DISK_RESERVE = 64 << 20
_log = logging.getLogger(__name__)


def prepare_job(config: PrecomputeConfig) -> Job:
    """Check and freeze a run.

    Raises:
        CachekdError: whatever is wrong, before anything is loaded or written.
    """
    location = Location(config.cache)
    backend = find("teachers", config.backend)
    room = new_tokens(config)
    facts: TeacherFacts = backend.identify(config)
    tokenizer_identity = tokenizer_facts(facts.tokenizer_folder)
    identity = bare_identity(config, facts, tokenizer_identity)
    _refuse_other(config, identity, location)
    tokenizer = load_tokenizer(config, facts)
    if lost_identity(location) and not config.dry_run:
        _log.warning("%s: cache.json is lost; it is written anew", location.url)
        written = provenance_of(config, tokenizer, clock_of(None))
        write_identity(location, replace(identity, provenance=written))
    state = read_state(location, skip_broken_units=True) if has_cache(location) else None
    clock = clock_of(state)
    identity = replace(identity, provenance=provenance_of(config, tokenizer, clock))
    if state is not None:
        check_same(state.identity, beside(identity, state.identity), location)
        identity = state.identity
    location.check_writable()
    prepared = prepare(
        read_rows(config),
        config,
        tokenizer,
        context_length=facts.context_length,
        vocab_size=tokenizer_identity.vocab_size,
        clock=clock,
        new_tokens=room,
    )
    writing: Writing | None = None
    if room is not None:
        writing = writing_of(config, facts, identity, tokenizer, location, prepared)
        prepared = answered(writing)
    lengths = writing.lengths() if writing else prepared.samples.lengths()
    identity = with_attention(config, facts, identity, state, location, lengths)
    job = freeze(config, facts, identity, location, state, prepared, writing)
    find("codecs", config.codec)(replace(job.header, prior=None))  # refuses what it cannot hold
    _check_disk(job)
    return job


def _refuse_other(config: PrecomputeConfig, identity: Identity, location: Location) -> None:
    """Refuse a wrong pair before any library is loaded."""
    if has_cache(location):
        stored = read_identity(location)
        refuse_other_kinds(config, stored, location)
        check_same(stored, beside(identity, stored), location)


def complete_job(job: Job) -> Job:
    """The job with the responses that its teacher has written since.

    Raises:
        CorruptCache: a file of responses was altered meanwhile.
    """
    assert job.writing is not None, "its teacher wrote"
    writing = job.writing.reloaded(job.location)
    state = read_state(job.location, skip_broken_units=True)
    prepared = answered(writing)
    return freeze(job.config, job.facts, job.identity, job.location, state, prepared, writing)


def _check_disk(job: Job) -> None:
    needed, free = job.bytes_at_most() + _DISK_RESERVE, job.location.free_bytes()
    if job.todo and job.config.check_disk and free is not None and needed > free:
        raise StoreError(
            f"the disk of {job.location.url} has {free / 1e9:.2f} GB free; this run may need up to "
            f"{needed / 1e9:.2f} GB. Free space, lower --logits-top-k, keep less attention, or "
            "pass --no-check-disk if you know that most positions keep fewer entries"
        )
