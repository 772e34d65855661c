"""Who writes a batch, and what becomes of it: the left half of the picture for on-policy training.

In: visits of prompts, a student that writes and is read, a live teacher behind the score cache.
Out: records like those of a cache, so that collator, objective and trainer cannot tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cachekd.objectives._rollouts import Rollouts
from cachekd.rollouts import Ask, Rollout, Scores, StudentReader, Written
from cachekd.rollouts.clock import Clock
from cachekd.rollouts.coins import coin, coins
from cachekd.rollouts.measures import Measures
from cachekd.rollouts.replay import ReplayBuffer
from cachekd.rollouts.returns import Moments, advantages, moments, whitened
from cachekd.rollouts.schedule import Schedule, Source
from cachekd.rollouts.scrg import Corrected, correct
from cachekd.types import Float32, Int32

Write = Callable[[Sequence[Ask]], list[Written]]
Reduce = Callable[[np.ndarray], np.ndarray]
"""Sums an array over all processes."""
Own = Callable[[], "Sequence[Asked]"]
"""Tells all prompts of the collection that a batch belongs to, of this process."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """A prompt of a visit: its sample, which draw, and its tokens."""

    sample: int
    number: int
    prompt: Int32


Texts = tuple[Rollout | None, ...]
"""A rollout for each place of a batch, or None where the data's response is used."""


class Engine:
    """Makes rollouts as an objective asks for them, and remembers what may be used again.

    Args:
        spec: what the objective asks.
        write: the student writes.
        reader: the student is read.
        scores: the teacher scores.
        seed: of coins, draws and replays.
        reduce: sums over processes.
        kept: is given all rollouts as they are made.
    """

    def __init__(
        self,
        spec: Rollouts,
        *,
        write: Write,
        reader: StudentReader,
        scores: Scores,
        seed: int,
        reduce: Reduce = lambda sums: sums,
        kept: Callable[[Sequence[Rollout]], None] | None = None,
    ) -> None:
        self.spec = spec
        self.schedule = Schedule(spec.share, spec.replay)
        self.buffer = ReplayBuffer(spec.replay)
        self.clock = Clock()
        self._write = self.clock.of("generate", write)
        self._reader = reader
        self._scores = scores
        self._seed, self._reduce, self._kept = seed, reduce, kept
        self._collection: dict[int, Rollout] = {}
        self._collected: tuple[int, int] | None = None
        self.measures = Measures()
        self.totals: Counter[str] = Counter()

    def batch(
        self, asked: Sequence[Asked], place: tuple[int, int, int], progress: float, own: Own
    ) -> Texts:
        """Who writes these prompts' responses, and the responses.

        Args:
            asked: the prompts of a batch.
            place: epoch, collection and round of it, alike in all processes.
            progress: share of the run that is done.
            own: asked where a new collection begins.
        """
        epoch, group, number = place
        if self.spec.collect or self.spec.returns is not None:
            return self._of_collection(asked, (epoch, group), own)
        share, step = self.spec.share, (epoch << 32) + number
        if share.per == "sample":
            return self._by_sample(asked, step, progress)
        uniform = coin(self._seed, step)
        source = self.schedule.draw(uniform, progress, len(self.buffer), len(asked))
        self._told(source, len(asked))
        if source is Source.DATA:
            return (None,) * len(asked)
        if source is Source.FRESH:
            fresh = self.make(asked)
            self.buffer.push(fresh)
            if share.fresh_trains or len(self.buffer) < len(asked):
                return tuple(fresh)
        drawn = self.buffer.draw(len(asked), self._seed, step)
        return tuple(drawn)

    def _by_sample(self, asked: Sequence[Asked], step: int, progress: float) -> Texts:
        """One coin a sample: student text for some, the data's for the others."""
        drawn = coins(self._seed, step, np.array([item.sample for item in asked], np.int64))
        sources = [self.schedule.draw(float(u), progress, 0, len(asked)) for u in drawn]
        own = [item for item, source in zip(asked, sources, strict=True) if source is Source.FRESH]
        written = iter(self.make(own) if own else [])
        self._told(Source.FRESH, len(own))
        self._told(Source.DATA, len(asked) - len(own))
        return tuple(next(written) if s is Source.FRESH else None for s in sources)

    def _of_collection(self, asked: Sequence[Asked], place: tuple[int, int], own: Own) -> Texts:
        """Rollouts of the collection that these prompts belong to; written where it is new."""
        if self._collected != place:
            rollouts = self.make(own())
            self._told(Source.FRESH, len(rollouts))
            if self.spec.returns is not None:
                rollouts = self._advantaged(rollouts)
            self._collection = {rollout.sample: rollout for rollout in rollouts}
            self._collected = place
        else:
            self._told(Source.REPLAY, len(asked))
        return tuple(self._collection[item.sample] for item in asked)

    def make(self, asked: Sequence[Asked]) -> list[Rollout]:
        """Responses to prompts: written, corrected where that is asked for, scored and read."""
        texts = self._texts(asked)
        documents = [
            np.concatenate([a.prompt, text.response]).astype(np.int32)
            for a, text in zip(asked, texts, strict=True)
        ]
        firsts = [len(a.prompt) - 1 for a in asked]
        given, old = self._read(documents, firsts)
        logits = self._scores.score(documents, firsts, given)
        rollouts = [
            Rollout(
                sample=a.sample,
                number=a.number,
                input_ids=document,
                prompt_length=len(a.prompt),
                logits=targets,
                old_logprob=logprob,
                behaviour_logprob=_mixed(
                    logprob, targets.next_logprob[first:], self.spec.teacher_mix
                ),
                advantage=np.zeros(len(logprob), np.float32),
                corrections=text.corrections,
            )
            for a, text, document, first, targets, logprob in zip(
                asked, texts, documents, firsts, logits, old, strict=True
            )
        ]
        self.measures.add(rollouts, [text.ended for text in texts])
        if self._kept is not None:
            self._kept(rollouts)
        return rollouts

    def _texts(self, asked: Sequence[Asked]) -> list[Corrected]:
        """What the student writes, corrected where that is asked for."""
        asks = [Ask(input_ids=a.prompt, number=a.number, forced=_NOTHING) for a in asked]
        written = self._write(asks)
        if self.spec.correction is None:
            return [Corrected(response=text.response, ended=text.ended) for text in written]
        return correct(
            asks,
            written,
            self.spec.correction,
            scores=self._scores,
            reader=self._reader,
            write=self._write,
            seed=self._seed,
        )

    def _read(
        self, documents: Sequence[Int32], firsts: Sequence[int]
    ) -> tuple[list[Int32] | None, list[Float32]]:
        """The student's own best tokens, where they are wanted, and its log-probabilities."""
        with self.clock.timed("student"):
            support = self.spec.support
            given = self._reader.best_ids(documents, firsts, support) if support else None
            return given, self._reader.next_logprobs(documents, firsts)

    def _advantaged(self, rollouts: list[Rollout]) -> list[Rollout]:
        """With their advantages, whitened over the collection of all processes."""
        assert self.spec.returns is not None, "only then are there advantages"
        found = advantages(rollouts, self.spec.returns)
        if self.spec.returns.whiten:
            own = moments(found)
            sums = self._reduce(np.array([own.count, own.total, own.squares]))
            count, total, squares = map(float, sums)
            found = whitened(found, Moments(count=count, total=total, squares=squares))
        return [replace(r, advantage=a) for r, a in zip(rollouts, found, strict=True)]

    def _told(self, source: Source, count: int) -> None:
        self.totals[f"{source.value}_sequences"] += count

    def flush(self) -> None:
        """Make sure that what was scored outlives the process."""
        self._scores.flush()

    def held(self) -> dict[str, list[Rollout]]:
        """Rollouts that may be used again: of the buffer, and of the present collection."""
        return {"buffer": self.buffer.held(), "collection": list(self._collection.values())}

    def state(self) -> dict[str, Any]:
        """All else that a run is continued from, as plain JSON types."""
        return {
            "schedule": self.schedule.state(),
            "collected": self._collected,
            "totals": dict(self.totals),
            "seconds": dict(self.clock.seconds),
            "written": dict(self.measures.totals),
            "sums": self.measures.sums.tolist(),
            "scores": self._scores.state(),
        }

    def restore(self, state: Mapping[str, Any], held: Mapping[str, list[Rollout]]) -> None:
        """Go on from `state` and `held`."""
        self.schedule.restore(state["schedule"])
        self._collected = None if state["collected"] is None else tuple(state["collected"])
        self._collection = {rollout.sample: rollout for rollout in held["collection"]}
        self.buffer = ReplayBuffer(self.spec.replay)
        self.buffer.push(held["buffer"])
        self.totals = Counter(state["totals"])
        self.clock.seconds.update(state["seconds"])
        self.measures.totals = Counter(state["written"])
        self.measures.sums[:] = state["sums"]
        self._scores.restore(state["scores"])

    def figures(self) -> Mapping[str, Any]:
        """Totals of the run, as plain JSON types."""
        return {
            **self.totals,
            **self.measures.totals,
            "seconds": {name: round(value, 3) for name, value in self.clock.seconds.items()},
            "scores": dict(self._scores.figures()),
            "schedule": self.schedule.state(),
            "buffer": len(self.buffer),
        }


_NOTHING = np.empty(0, np.int32)


def _mixed(log_q_n: Float32, log_p_n: Float32, alpha: float) -> Float32:
    """Log of alpha p + (1 - alpha) q."""
    if not alpha:
        return log_q_n
    with np.errstate(divide="ignore"):
        mixture = np.logaddexp(np.log1p(-alpha) + log_q_n, np.log(alpha) + log_p_n)
    return np.asarray(mixture, np.float32)
