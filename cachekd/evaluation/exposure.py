"""ExAccErr: error that a model accumulates because it goes on from its own text.

In: a student, a teacher, prompts, and what each of the two wrote. Out: for each response length l
R(l) = sum_{t <= l} eps_t(student), E(l) = sum_{t <= l} eps_t(teacher) and
ExAccErr(l) = (R - E) / E x 100 %, where eps_t(pi) is the mean of KL(p || q) at response token t
over contexts that pi wrote (Arora et al., "Why Exposure Bias Matters", 2022; Gu et al., "MiniLLM",
3.3). KL is over the whole vocabulary. A mean is over the responses that have a token t (alive): one
that is over neither adds nor lowers. That share is told beside it, as are R and E: a ratio hides
that both may grow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.data.alignment import response_rows
from cachekd.evaluation.figures import Figure, figure
from cachekd.evaluation.scores import Side, Wanted, score
from cachekd.evaluation.texts import Run
from cachekd.report.text import finite
from cachekd.types import Int32

Float64 = NDArray[np.float64]
Told = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """Errors by response token, from the first on.

    Attributes:
        sums: sum of KL over alive responses, float64 [T].
        alive: alive responses, float64 [T], all above 0.
        responses: number of responses.
    """

    sums: Float64
    alive: Float64
    responses: int

    def accumulated(self) -> Float64:
        """The sum over tokens up to each of the mean over alive responses, float64 [T]."""
        total: Float64 = np.cumsum(self.sums / self.alive)
        return total

    def error(self, length: int) -> float | None:
        """R or E at a length; None where no response has so many tokens."""
        return float(self.accumulated()[length - 1]) if length <= len(self.alive) else None

    def share_alive(self, length: int) -> float:
        """Share of the responses that have so many tokens."""
        return float(self.alive[length - 1]) / self.responses if length <= len(self.alive) else 0.0


def curve_of(errors: Sequence[Float64]) -> Curve:
    """The curve of some responses.

    Args:
        errors: KL at each token of a response, float64 [n], n >= 1.
    """
    longest = max(map(len, errors))
    sums, alive = np.zeros(longest), np.zeros(longest)
    for one in errors:
        sums[: len(one)] += one
        alive[: len(one)] += 1
    return Curve(sums=sums, alive=alive, responses=len(errors))


def exposure(
    student: Side,
    teacher: Side,
    prompts: Sequence[Int32],
    written: tuple[Sequence[Run], Sequence[Run]],
    lengths: Sequence[int],
    batch_tokens: int,
    told: Told,
) -> tuple[dict[str, Figure], dict[str, Any]]:
    """ExAccErr at some lengths, and the whole curves over all seeds.

    Args:
        student: q.
        teacher: p.
        prompts: of the examples.
        written: what the student and what the teacher wrote, seed by seed.
        lengths: in tokens.
        batch_tokens: token budget of a batch.
        told: is told how many responses of how many are read.

    Raises:
        TeacherError, MemoryError: see `cachekd.evaluation.scores.score`.
    """
    total = sum(map(len, written)) * len(prompts)
    errors: list[list[Float64]] = []
    for run in (*written[0], *written[1]):
        done = len(errors) * len(prompts)

        def further(count: int, done: int = done) -> None:
            told(done + count, total)

        errors.append(_errors(student, teacher, prompts, run, batch_tokens, further))
    own, forced = errors[: len(written[0])], errors[len(written[0]) :]
    pairs = [(curve_of(r), curve_of(e)) for r, e in zip(own, forced, strict=True)]
    pooled = {"student": own, "teacher": forced}
    return (
        {f"exaccerr_{length}": _at(pairs, length) for length in lengths},
        {name: _plain(curve_of(list(chain(*runs)))) for name, runs in pooled.items()},
    )


def _errors(
    student: Side,
    teacher: Side,
    prompts: Sequence[Int32],
    run: Run,
    batch_tokens: int,
    told: Callable[[int], None],
) -> list[Float64]:
    """KL(p || q) at each token of what was written."""
    documents = [
        Wanted(
            input_ids=np.concatenate([prompt, text.response]),
            rows=np.array(response_rows(len(prompt), len(text.response)), np.int64),
            targets=text.response.astype(np.int64),
        )
        for prompt, text in zip(prompts, run.written, strict=True)
    ]
    scores = score(student, teacher, documents, batch_tokens, ("forward_kl",), told)
    return [one["forward_kl"] for one in scores]


def _at(pairs: Sequence[tuple[Curve, Curve]], length: int) -> Figure:
    """The figure at one length, with R, E and the alive shares of each seed."""
    sides = [[side.error(length) for side in pair] for pair in pairs]
    alive = [[side.share_alive(length) for side in pair] for pair in pairs]
    values = [float("nan") if r is None or not e else 100 * (r - e) / e for r, e in sides]
    short = [
        name
        for name, of_seeds in zip(("model", "teacher"), zip(*sides, strict=True), strict=True)
        if None in of_seeds
    ]
    why = f"no response of the {' or the '.join(short)} has {length} tokens"
    return figure(
        values,
        why=why if short else "the error in the teacher's own contexts is 0, or one is infinite",
        student=[finite(r) for r, _ in sides],
        teacher=[finite(e) for _, e in sides],
        alive_student=[r for r, _ in alive],
        alive_teacher=[e for _, e in alive],
    )


def _plain(curve: Curve) -> dict[str, list[float | None]]:
    return {
        "accumulated": list(map(finite, curve.accumulated().tolist())),
        "alive": (curve.alive / curve.responses).tolist(),
    }
