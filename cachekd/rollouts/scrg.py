"""Sequence correction and re-generation: the teacher corrects a text where the student errs most.

In: responses of the student. Out: the same, or corrected ones. Of "Multi-Granularity Semantic
Revision for Large Language Model Distillation", section 4.1, Eqs. 3 and 4:

    j = argmax over { i : y_i differs from the teacher's token at i } of KL(q_i || p_i)

y_j becomes the teacher's token, and the student writes on behind it. KL has the teacher's stored
tokens and one outcome for the rest; of equal ones the first counts. A response that differs nowhere
stays as it is. Further corrections (frequency above 1) look behind the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cachekd.objectives._rollouts import Correction
from cachekd.rollouts import Ask, Scores, StudentReader, Written
from cachekd.rollouts.coins import coins
from cachekd.types import Float32, Int32, Int64, TopKLogits


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corrected:
    """A response after correction.

    Attributes:
        response: tokens, int32 [n].
        ended: whether an end token ended it.
        corrections: positions that were replaced, ascending.
        replaced: the student's tokens that stood there.
    """

    response: Int32
    ended: bool
    corrections: tuple[int, ...] = ()
    replaced: tuple[int, ...] = ()


def correct(
    asks: Sequence[Ask],
    written: Sequence[Written],
    correction: Correction,
    *,
    scores: Scores,
    reader: StudentReader,
    write: Callable[[Sequence[Ask]], list[Written]],
    seed: int,
) -> list[Corrected]:
    """Correct responses.

    Args:
        asks: prompts, and which draws the responses are.
        written: the response to each.
        correction: how often, with which token, and by which divergence.
        scores: the teacher.
        reader: the student.
        write: how the student goes on behind forced tokens.
        seed: of tokens that are drawn from the teacher.
    """
    found = [Corrected(response=text.response, ended=text.ended) for text in written]
    open_ = list(range(len(asks)))
    for turn in range(correction.frequency):
        places = _places(
            [asks[i] for i in open_],
            [found[i] for i in open_],
            correction,
            scores,
            reader,
            seed + turn,
        )
        open_ = [i for i, place in zip(open_, places, strict=True) if place is not None]
        wanted = [place for place in places if place is not None]
        if not open_:
            break
        again = write(
            [_forced(asks[i], found[i], place) for i, place in zip(open_, wanted, strict=True)]
        )
        for i, place, text in zip(open_, wanted, again, strict=True):
            found[i] = _corrected(found[i], place, text)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a response is corrected, and by which token."""

    position: int
    token: int


def _forced(ask: Ask, before: Corrected, place: _Place) -> Ask:
    """The prompt again, its response begun up to the correction and with it."""
    begun = np.append(before.response[: place.position], place.token).astype(np.int32)
    return Ask(input_ids=ask.input_ids, number=ask.number, forced=begun)


def _corrected(before: Corrected, place: _Place, text: Written) -> Corrected:
    return Corrected(
        response=text.response,
        ended=text.ended,
        corrections=(*before.corrections, place.position),
        replaced=(*before.replaced, int(before.response[place.position])),
    )


def _places(
    asks: Sequence[Ask],
    texts: Sequence[Corrected],
    correction: Correction,
    scores: Scores,
    reader: StudentReader,
    seed: int,
) -> list[_Place | None]:
    """Where each text is corrected; None where nothing is left to correct."""
    documents = [
        np.concatenate([ask.input_ids, text.response]).astype(np.int32)
        for ask, text in zip(asks, texts, strict=True)
    ]
    firsts = [len(ask.input_ids) - 1 for ask in asks]
    targets = scores.score(documents, firsts)
    found = reader.divergences(documents, firsts, targets, correction.divergence)
    places: list[_Place | None] = []
    for ask, text, first, logits, kl_n in zip(asks, texts, firsts, targets, found, strict=True):
        tokens_n = _teacher_tokens(logits, first, correction.pick, seed, ask.number)
        after = text.corrections[-1] if text.corrections else -1
        places.append(_place(text.response, tokens_n, kl_n, after))
    return places


def _place(response_n: Int32, tokens_n: Int64, kl_n: Float32, after: int) -> _Place | None:
    """The position of the greatest divergence among those where the tokens differ."""
    position_n = np.arange(len(response_n))
    open_n = (tokens_n != response_n) & (tokens_n >= 0) & (position_n > after)
    if not open_n.any():
        return None
    position = int(np.where(open_n, kl_n, -np.inf).argmax())
    return _Place(position=position, token=int(tokens_n[position]))


def _teacher_tokens(logits: TopKLogits, first: int, pick: str, seed: int, number: int) -> Int64:
    """The teacher's token of each row, int64 [n]: its best, or one drawn.

    A draw is one uniform on the cumulated head; where it falls into the tail no token is known,
    and the position (-1) is not corrected.
    """
    starts_n, stops_n = logits.offsets[first:-1], logits.offsets[first + 1 :]
    if pick == "argmax":
        return logits.ids[starts_n].astype(np.int64)
    uniform_n = coins(seed, number, np.arange(len(starts_n)))
    tokens = np.full(len(starts_n), -1, np.int64)
    for row, (start, stop) in enumerate(zip(starts_n, stops_n, strict=True)):
        mass = np.exp(logits.logprobs[start:stop].astype(np.float64)).cumsum()
        at = int(np.searchsorted(mass, uniform_n[row], side="right"))
        if at < stop - start:
            tokens[row] = logits.ids[start + at]
    return tokens
