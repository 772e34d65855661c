"""Units in a process that has none of the run's data: what it is sent, and what it makes of it.

Comes in, once: an `Opening`, all of a job but its text (about 40 bytes a sample); and with each
unit its `Samples`. Goes out: the same shards as those of a process that has read the data. The
process must see the teacher and the cache under the same names, and checks that it does.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from cachekd.capture.documents import Documents, ResponseRows
from cachekd.capture.identify import bare_identity
from cachekd.capture.job import Job
from cachekd.capture.trial import learn
from cachekd.capture.worker import UnitWorker, attending, load_teacher
from cachekd.codecs._priors import Prior
from cachekd.config import PrecomputeConfig
from cachekd.data.digests import differences
from cachekd.data.packed import Keys, Packed, Places
from cachekd.data.spool import SpooledFiles
from cachekd.engines import Told
from cachekd.engines._writers import OwnProcess
from cachekd.errors import MismatchError, StoreError
from cachekd.plugins import find
from cachekd.store.identity import Identity
from cachekd.store.io import Location
from cachekd.store.layout import plan_name
from cachekd.store.plan import load_plan
from cachekd.store.retries import counted, since
from cachekd.store.settings import using
from cachekd.store.tokenizer import tokenizer_facts
from cachekd.teachers import Teacher, TeacherFacts
from cachekd.types import Int64, Sample

Samples = Mapping[int, Sample]
"""Samples by their place in the run's data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """All of a job but its text. Attributes are those of `Job`, and arrays of its documents."""

    config: PrecomputeConfig
    facts: TeacherFacts
    identity: Identity
    keys: Packed
    ids: Packed
    lengths: Int64
    response_rows: bool
    attention_rows: bool
    plan_digest: str
    plan_data: bytes
    todo: tuple[int, ...]
    known: bool
    prior: Prior | None
    prior_digest: str | None


def opening_of(job: Job) -> Opening:
    """What a remote worker must know of a job; paths that are there are made absolute."""
    documents = job.documents
    return Opening(
        config=_absolute(job),
        facts=job.facts,
        identity=job.identity,
        keys=documents.keys.array,
        ids=documents.ids.array,
        lengths=documents.lengths,
        response_rows=job.wanted is not None,
        attention_rows=job.attention_wanted is not None,
        plan_digest=job.plan_digest,
        plan_data=job.plan_data,
        todo=tuple(job.todo),
        known=job.known,
        prior=job.prior,
        prior_digest=job.prior_digest,
    )


def samples_of(job: Job, numbers: Sequence[int]) -> Samples:
    """All samples of the keys of these units."""
    documents = job.documents
    places = {
        int(place)
        for number in numbers
        for key in job.plan.packed_keys(number)
        for place in documents.places.all_of(key)
    }
    return {place: documents.samples[place] for place in sorted(places)}


def _absolute(job: Job) -> PrecomputeConfig:
    config = job.config
    names = ("teacher", "tokenizer", "adapter", "offload_folder")
    paths = {name: getattr(config, name) for name in names}
    there = {name: os.path.abspath(path) for name, path in paths.items() if _is_there(path)}
    folder = job.location.folder
    cache = os.path.abspath(folder.root) if folder is not None else job.location.target
    return replace(config, cache=cache, **there)


def _is_there(path: str | None) -> bool:
    return path is not None and os.path.exists(path)


def _documents(opening: Opening) -> Documents:
    """The documents; they are empty until samples come."""
    keys = Keys(opening.keys)
    places = Places(keys)
    return Documents(
        samples={},
        keys=keys,
        ids=Keys(opening.ids),
        places=places,
        lengths=np.asarray(opening.lengths),
        firsts=places.firsts(),
    )


def _job(opening: Opening, facts: TeacherFacts, documents: Documents) -> Job:
    """The job again."""
    wanted = ResponseRows(documents)
    with using(opening.config):
        location = Location(opening.config.cache)
    return Job(
        config=opening.config,
        facts=facts,
        identity=opening.identity,
        location=location,
        documents=documents,
        wanted=wanted if opening.response_rows else None,
        attention_wanted=wanted if opening.attention_rows else None,
        plan=load_plan(plan_name(opening.plan_digest), opening.plan_data),
        plan_digest=opening.plan_digest,
        files=SpooledFiles(),
        todo=opening.todo,
        cached=0,
        new_samples=0,
        known=opening.known,
        prior=opening.prior,
        prior_digest=opening.prior_digest,
    )


class SentWorker:
    """See `cachekd.engines.RemoteWorker`; it loads its teacher once, when it is first needed."""

    def __init__(self) -> None:
        self._counted = counted()
        self._warnings: list[str] = []  # not told yet
        self._held: tuple[TeacherFacts, Documents, Teacher] | None = None
        self._job: Job | None = None
        self._worker: UnitWorker | None = None

    def load(self, opening: Opening) -> None:
        """Load the teacher (errors of `begin`)."""
        self._loaded(opening)

    def try_teacher(self, opening: Opening, samples: Samples, units: Sequence[int]) -> Prior | None:
        """What is learned of these units, whose samples these are (errors of `learn`)."""
        job, teacher = self._loaded(opening)
        with _warnings(self._warnings), _at_hand(job, samples):
            self._job, prior = learn(
                job, teacher, units, stop_asked=lambda: False, scored=lambda _: None
            )
        return prior

    def begin(self, opening: Opening) -> None:
        """Take units of this plan from now on.

        Raises:
            StoreError: this machine sees no such plan in the cache.
            MismatchError: the teacher of this machine is another.
            TeacherError: it cannot be loaded.
        """
        job, teacher = self._loaded(opening)
        if not job.location.exists(plan_name(job.plan_digest)):
            raise StoreError(
                f"{platform.node()} sees no plan of this run in {job.location.url}: a cache that "
                "several machines fill must be in a place that all of them see under one name"
            )
        before = self._job
        if before is not None and before.plan.units == job.plan.units:
            job = replace(job, scored=before.scored)
        self._job = job
        with OwnProcess(job.location) as writers:
            self._worker = UnitWorker(teacher, writers, lambda: False, lambda _: None)
        self._worker.begin(job)

    def do(self, number: int, samples: Samples) -> Told:
        """Score and commit a unit; what is told also holds what went wrong before the first."""
        assert self._job is not None and self._worker is not None, "begun before the first unit"
        with _warnings(self._warnings), _at_hand(self._job, samples):
            self._worker.do(number)
        warnings, self._warnings = self._warnings, []
        happened, self._counted = since(self._counted), counted()
        return Told(warnings=warnings, happened=happened)

    def _loaded(self, opening: Opening) -> tuple[Job, Teacher]:
        if self._held is None:
            facts, documents = _own_facts(opening), _documents(opening)
            job = _job(opening, facts, documents)
            with _warnings(self._warnings):
                self._held = facts, documents, attending(job, load_teacher(job))
        facts, documents, teacher = self._held
        return _job(opening, facts, documents), teacher


def _own_facts(opening: Opening) -> TeacherFacts:
    """Who the teacher is here, whose identity must be the run's: all that a source id is made of.

    Raises:
        MismatchError: it is another; each field that differs is named.
    """
    config = opening.config
    found: TeacherFacts = find("teachers", config.backend).identify(config)
    own = bare_identity(config, found, tokenizer_facts(found.tokenizer_folder))
    run = opening.identity
    lines = differences(
        {"source": run.source, "capture": run.capture},
        {"source": own.source, "capture": own.capture},
    )
    if lines:
        raise MismatchError(
            f"{platform.node()}: the teacher {config.teacher} is another here than that of this "
            "run. They differ in (this run / here):\n  "
            + "\n  ".join(lines)
            + "\nGive all machines the same files"
        )
    return found


@contextmanager
def _at_hand(job: Job, samples: Samples) -> Iterator[None]:
    """Within, the documents of a job have these samples."""
    held = job.documents.samples
    assert isinstance(held, dict), "a remote job"
    held.update(samples)
    try:
        yield
    finally:
        held.clear()


@contextmanager
def _warnings(told: list[str]) -> Iterator[None]:
    """Add the warnings of cachekd that are logged within: nobody reads the log of this process."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("cachekd")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
