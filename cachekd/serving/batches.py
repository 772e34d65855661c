"""One thread owns the teacher: requests that come together are scored together.

Comes in: a `ScoreRequest` of each client. Goes out: a future of its targets. Documents of requests
with one selection are sorted by length and cut into batches, whoever asked for them. Where a batch
fails it is halved, down to the document at fault, and only that one's request fails.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from cachekd.errors import TeacherError
from cachekd.store.plan import PlannedBatch, cut
from cachekd.teachers import Selection, Teacher
from cachekd.teachers._memory import release
from cachekd.teachers._wire import ScoreRequest
from cachekd.types import TopKLogits

_NO_UNIT = 1 << 62
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    """A request, what is known of its documents so far, and who waits for it."""

    request: ScoreRequest
    future: Future[list[TopKLogits]] = field(default_factory=Future)
    found: dict[int, TopKLogits] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.request.documents))

    def put(self, place: int, target: TopKLogits) -> None:
        """Keep a document's targets; with the last one, answer."""
        self.found[place] = target
        if len(self.found) == len(self.request.documents) and not self.future.done():
            self.future.set_result([self.found[i] for i in range(len(self.found))])

    def fail(self, error: Exception) -> None:
        """Answer with an error, once."""
        if not self.future.done():
            self.future.set_exception(error)


_Item = tuple[_Job, int]
"""A document: its job and its place there."""


class Batches:
    """The thread that owns the teacher, and its queue."""

    def __init__(self, teacher: Teacher, *, batch_tokens: int, max_wait: float) -> None:
        self._teacher = teacher
        self._batch_tokens = batch_tokens
        self._max_wait = max_wait
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="teacher")
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that no batch has taken yet."""
        return self._queue.qsize()

    def submit(self, request: ScoreRequest) -> Future[list[TopKLogits]]:
        """The targets of a request, when they are known.

        The future fails with `TeacherError` where the teacher gave what cannot be used, and with
        whatever else a model raises.
        """
        job = _Job(request=request)
        self._queue.put(job)
        return job.future

    def stop(self) -> None:
        """End when all that was submitted is answered."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while not self._ended:
            by_selection: dict[Selection, list[_Item]] = {}
            for job in self._gather():
                if job.future.set_running_or_notify_cancel():  # else nobody waits for it any more
                    items = by_selection.setdefault(job.request.selection, [])
                    items += [(job, place) for place in range(len(job.request.documents))]
            for selection, items in by_selection.items():
                for batch, padded_length in self._cut(items):
                    self._score(batch, padded_length, selection)

    def _gather(self) -> Iterator[_Job]:
        """The next job, and those that come before the budget is full or the wait is over."""
        job = self._queue.get()
        deadline = time.monotonic() + self._max_wait
        tokens = 0
        while job is not None:
            yield job
            tokens += job.tokens
            if tokens >= self._batch_tokens:
                return
            try:
                job = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return
        self._ended = True

    def _cut(self, items: list[_Item]) -> Iterator[tuple[list[_Item], int]]:
        """Items in batches within the budget, with their padded lengths."""
        lengths = [len(job.request.documents[place]) for job, place in items]
        order, units = cut(
            lengths,
            batch_tokens=self._batch_tokens,
            sort_window=len(items),
            unit_tokens=_NO_UNIT,
            bytes_per_token=1,
        )
        batches: list[PlannedBatch] = [batch for unit in units for batch in unit]
        for batch in batches:
            chosen = order[batch.first : batch.first + batch.rows]
            yield [items[i] for i in chosen], batch.padded_length

    def _score(self, items: Sequence[_Item], padded_length: int, selection: Selection) -> None:
        """Score a batch, or find the documents that cannot be scored."""
        items = [(job, place) for job, place in items if not job.future.done()]
        if not items:
            return
        requests = [(job.request, place) for job, place in items]
        try:
            targets = self._teacher.score(
                [request.documents[place] for request, place in requests],
                padded_length,
                selection,
                [request.wanted[place] for request, place in requests],
                [request.given[place] for request, place in requests],
            )
        except Exception as error:  # whatever a model raises, the server lives
            self._halve(items, padded_length, selection, error)
            return
        for (job, place), target in zip(items, targets, strict=True):
            job.put(place, target)

    def _halve(
        self, items: Sequence[_Item], padded_length: int, selection: Selection, error: Exception
    ) -> None:
        if isinstance(error, MemoryError):
            release()
        if len(items) > 1:
            middle = len(items) // 2
            self._score(items[:middle], padded_length, selection)
            self._score(items[middle:], padded_length, selection)
            return
        ((job, place),) = items
        _log.warning("a document of %d tokens failed: %r", padded_length, error)
        short = "out of memory: " if isinstance(error, MemoryError) else ""
        text = str(error) or type(error).__name__
        told = TeacherError(
            f"document {place} ({len(job.request.documents[place])} tokens) cannot be scored: "
            f"{short}{text}"
        )
        told.__cause__ = error
        job.fail(told)
