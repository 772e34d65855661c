"""What a vLLM server says of a prompt, as targets of its rows.

Comes in: ``prompt_logprobs`` of one prompt, in which place t scores token t, so that it is row
t - 1; the first place is null. A place holds the k best tokens and the prompt's own, keyed by id
(ranks may be shared), at temperature 1 whatever is asked. Goes out: `TopKLogits`.

A server gives no more, so of each row the tail is 1 - sum of what is kept, in float32 no less than
2^-24; and the entropy is that of the kept entries and the tail as one outcome, a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.errors import DataError, MismatchError, TeacherError
from cachekd.teachers import Selection
from cachekd.types import Float32, Int32, TopKLogits

IMPOSSIBLE = -9000.0
"""vLLM writes -9999 for the logarithm of 0, which JSON cannot hold."""
EXCESS = 1e-3
BEYOND = 0.01
LEAST_TAIL = 2.0**-24

Row = tuple[dict[int, float], float]
"""Entries of a row by id, and the log-probability of the next token."""


def read_row(place: Any, next_id: int, vocab_size: int) -> Row:
    """The entries of one place of ``prompt_logprobs``.

    Ids beyond the vocabulary are padding of the teacher's embedding: their mass is the tail's.

    Raises:
        DataError: it is no such place.
        MismatchError: the teacher gives mass to tokens that the student does not have.
        TeacherError: the values are no log-probabilities.
    """
    if not isinstance(place, Mapping):
        raise DataError(f"expected the log-probabilities of a place; found {str(place)[:80]}")
    try:
        found = {int(key): float(item["logprob"]) for key, item in place.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"a place of prompt_logprobs cannot be read: {error!r}") from error
    mass = math.fsum(math.exp(min(value, 1.0)) for value in found.values())
    if not mass <= 1 + EXCESS:  # NaN is refused too
        raise TeacherError(
            f"the server gives values that are no log-probabilities: they sum to {mass:.4g}. Start "
            "vLLM with --logprobs-mode raw_logprobs"
        )
    beyond = math.fsum(math.exp(value) for key, value in found.items() if key >= vocab_size)
    if beyond > BEYOND or min(found, default=0) < 0:
        raise MismatchError(
            f"the server gives {beyond:.2g} of a row's probability to ids beyond the student's "
            f"vocabulary of {vocab_size}: expected a teacher with the student's tokenizer"
        )
    if next_id not in found:
        raise DataError(f"the prompt's own token {next_id} is not among the entries of its place")
    known = {key: value for key, value in found.items() if key < vocab_size}
    own = known[next_id]
    return known, own if own > IMPOSSIBLE else -math.inf


def kept(entries: Mapping[int, float], given: Mapping[int, float], selection: Selection) -> Any:
    """Ids and log-probabilities that a selection keeps of a row, and the given ones; best first."""
    ranked = sorted(entries.items(), key=lambda item: (-item[1], item[0]))[: selection.k]
    head, before = {}, 0.0
    for rank, (key, value) in enumerate(ranked):
        p = math.exp(value)
        wanted = before < selection.p or rank < selection.min_k or selection.p >= 1.0
        if value > IMPOSSIBLE and wanted and (p >= selection.min_prob or rank == 0):
            head[key] = value
        before += p
    further = {key: value for key, value in given.items() if value > IMPOSSIBLE}
    return sorted({**further, **head}.items(), key=lambda item: (-item[1], item[0]))


def targets_of(
    rows: Sequence[Row | None],
    given: Sequence[Mapping[int, float]],
    selection: Selection,
) -> TopKLogits:
    """Targets of a document; a row that is None was not wanted, and ``given`` is empty there."""
    lists = [
        [] if row is None else kept(row[0], further, selection)
        for row, further in zip(rows, given, strict=True)
    ]
    counts = [len(entries) for entries in lists]
    tails, entropies = zip(*[_rest(entries) for entries in lists], strict=True)
    return TopKLogits(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        ids=np.array([key for entries in lists for key, _ in entries], dtype=np.int32),
        logprobs=np.array([value for entries in lists for _, value in entries], dtype=np.float32),
        weights=None,
        tail=np.array(tails, dtype=np.float32),
        next_logprob=np.array([0.0 if row is None else row[1] for row in rows], dtype=np.float32),
        lognorm={1.0: np.zeros(len(rows), dtype=np.float32)},
        entropy=np.array(entropies, dtype=np.float32),
        vocab_size=selection.vocab_size,
    )


def given_entries(
    ids_RJ: Int32, scores_RJ: Float32, wanted: NDArray[np.bool_]
) -> list[dict[int, float]]:
    """Given ids with their log-probabilities by row; empty where a row is not wanted."""
    found: list[dict[int, float]] = [{} for _ in wanted]
    for place, row in enumerate(np.flatnonzero(wanted).tolist()):
        pairs = zip(ids_RJ[place].tolist(), scores_RJ[place].tolist(), strict=True)
        found[row] = dict(pairs)
    return found


def _rest(entries: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Log of the mass outside the entries, and the entropy that entries and tail have."""
    if not entries:
        return 0.0, 0.0
    probs = [math.exp(value) for _, value in entries]
    tail = max(1.0 - math.fsum(probs), LEAST_TAIL)
    known = -math.fsum(p * value for p, (_, value) in zip(probs, entries, strict=True))
    return math.log(tail), max(0.0, known - tail * math.log(tail))
