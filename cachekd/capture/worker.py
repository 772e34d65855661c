"""A worker: a loaded teacher, and what commits the units that it has scored.

Comes in: a job with its documents. Goes out: committed units. One a process, in whichever process
the engine runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cachekd.capture.attention import AttendingTeacher
from cachekd.capture.job import Job
from cachekd.capture.trial import try_teacher
from cachekd.capture.unit import score_unit
from cachekd.engines._writers import OwnProcess, WriterPool, Writers
from cachekd.plugins import find
from cachekd.teachers import Teacher, TeacherBackend
from cachekd.teachers._split import LeadingTeacher

# Fewer tokens are encoded sooner than a process starts.
_WORTH_A_PROCESS = 1 << 17


class UnitWorker:
    """See `cachekd.engines.Worker`.

    Args:
        teacher: loaded, and attending where attention is captured.
        writers: within their context.
        stop_asked: looked at between batches.
        scored: told the tokens of each batch that is done.
    """

    def __init__(
        self,
        teacher: Teacher,
        writers: Writers,
        stop_asked: Callable[[], bool],
        scored: Callable[[int], None],
    ) -> None:
        self._teacher, self._writers = teacher, writers
        self._stop_asked, self._told = stop_asked, scored
        self._job: Job | None = None

    def try_teacher(self, job: Job) -> Job:
        """See `cachekd.capture.trial.try_teacher`."""
        return try_teacher(job, self._teacher, stop_asked=self._stop_asked, scored=self._told)

    def begin(self, job: Job) -> None:
        """See `cachekd.engines.Worker`."""
        self._job = job
        self._writers.open(job.sink, job.prior)

    def do(self, number: int) -> None:
        """See `cachekd.engines.Worker`."""
        assert self._job is not None, "begun before the first unit"
        self._writers.submit(
            score_unit(
                self._job,
                self._teacher,
                number,
                stop_asked=self._stop_asked,
                scored=self._scored,
            )
        )

    def backlog_seconds(self) -> float:
        """See `Writers`."""
        return self._writers.backlog_seconds()

    def finish(self) -> None:
        """See `Writers`."""
        self._writers.finish()

    def _scored(self, tokens: int) -> None:
        self._writers.check()
        self._told(tokens)


@contextmanager
def worker_here(
    job: Job,
    loaded: Teacher | None,
    stop_asked: Callable[[], bool],
    scored: Callable[[int], None],
) -> Iterator[UnitWorker]:
    """A worker in this process; its writers start while its teacher is loaded."""
    with writers_of(job) as writers:
        yield UnitWorker(attending(job, loaded or load_teacher(job)), writers, stop_asked, scored)


def load_teacher(job: Job) -> Teacher:
    """The teacher, loaded; where it is split over processes, the one that leads."""
    plugin: TeacherBackend = find("teachers", job.config.backend)

    def load() -> Teacher:
        return plugin.load(job.config, job.facts, job.plan.threads)

    return load() if job.config.tp_plan is None else LeadingTeacher(load)


def attending(job: Job, teacher: Teacher) -> Teacher:
    """The teacher, encoding its attention where that is captured."""
    if job.attention is None:
        return teacher
    return AttendingTeacher(teacher, job.attention, job.attention_wanted)


def writers_of(job: Job) -> Writers:
    """Processes where there is something to do meanwhile, and where they see the same files."""
    worth = len(job.todo) > 1 and sum(map(job.unit_tokens, job.todo)) >= _WORTH_A_PROCESS
    if not (job.config.writers and worth) or job.location.private:
        return OwnProcess(job.location)
    return WriterPool(min(job.config.writers, len(job.todo)))
