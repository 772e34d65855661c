"""Rollouts: the student writes, a live teacher scores, and the trainer gets the same batches.

Nouns and the few verbs that the parts ask of each other. Responses follow the alignment law: of a
document of P prompt tokens and n response tokens the rows P-1 .. P+n-2 are trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cachekd.types import Float32, Int32, TopKLogits


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ask:
    """A prompt that the student is to answer.

    Attributes:
        input_ids: the prompt's tokens, int32 [P], P >= 1.
        number: which draw this is: draws are a function of seed, prompt and number alone.
        forced: tokens that the response begins with, int32 [F]; nothing is drawn for them.
    """

    input_ids: Int32
    number: int
    forced: Int32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Written:
    """A response.

    Attributes:
        response: tokens int32 [n], the forced ones and the end token among them.
        logprob: log of the probability of each in what was drawn from (of greedy text, in what the
            best was taken of), float32 [n]; 0 for forced ones.
        ended: whether an end token ended it, and not the limit of tokens.
    """

    response: Int32
    logprob: Float32
    ended: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rollout:
    """A response of the student with what teacher and student said of it when it was written.

    Attributes:
        sample: place of its prompt in the dataset.
        number: which draw it was.
        input_ids: prompt and response, int32 [L].
        prompt_length: P.
        logits: the teacher's rows; those before P-1 are empty.
        old_logprob: log q of each response token under the student that wrote, float32 [n].
        behaviour_logprob: log of the probability that the token was drawn with, float32 [n]: of the
            mixture with the teacher where there is one.
        advantage: float32 [n]; zeros until it is known.
        corrections: response positions that SCRG replaced, ascending.
    """

    sample: int
    number: int
    input_ids: Int32
    prompt_length: int
    logits: TopKLogits
    old_logprob: Float32
    behaviour_logprob: Float32
    advantage: Float32
    corrections: tuple[int, ...] = ()


class Scores(Protocol):
    """A live teacher behind the score cache."""

    def score(
        self,
        documents: Sequence[Int32],
        first_rows: Sequence[int],
        given: Sequence[Int32 | None] | None = None,
    ) -> list[TopKLogits]:
        """Targets of documents, from a row of each on; rows before it may be empty.

        Args:
            documents: token ids of each, int32 [L].
            first_rows: first row that is wanted of each.
            given: for each document ids [L-1 - first_row, J] whose probabilities are kept beside
                the head, or None.

        Raises:
            TeacherError: the teacher cannot be reached, or gave NaN.
        """
        ...

    def figures(self) -> Mapping[str, Any]:
        """What was scored and what was saved, as plain JSON types."""
        ...

    def state(self) -> Mapping[str, Any]:
        """The counters behind `figures`, as plain JSON types."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Count on from there."""
        ...

    def flush(self) -> None:
        """Make sure that what was scored outlives the process, and a loss of power."""
        ...

    def close(self) -> None:
        """Let go of files; nothing is asked any more."""
        ...


class StudentReader(Protocol):
    """Reads the student, as it is now and without gradients, at the response rows of documents."""

    def next_logprobs(self, documents: Sequence[Int32], first_rows: Sequence[int]) -> list[Float32]:
        """Log q of the actual next token from a row on, float32 [L-1 - first_row] each."""
        ...

    def best_ids(
        self, documents: Sequence[Int32], first_rows: Sequence[int], count: int
    ) -> list[Int32]:
        """The student's most probable tokens, int32 [L-1 - first_row, count] each."""
        ...

    def divergences(
        self,
        documents: Sequence[Int32],
        first_rows: Sequence[int],
        targets: Sequence[TopKLogits],
        name: str,
    ) -> list[Float32]:
        """A divergence of `cachekd.losses.choice.NAMES` at T = 1, [L-1 - first_row] each."""
        ...
