"""Rows of a document of any format: aligned, checked, and as targets of cachekd.

Comes in: a `Document` and what its values are. Goes out: `Checked`, or the reason why the document
cannot be used. What a format does not say is not made up: of log-probabilities the tail is 1 - sum
of what is kept, no less than 2^-24 (a float32 cannot tell); the entropy is that of the entries and
the tail as one outcome, a lower bound; the log-probability of the next token, where it is no entry,
is the larger bound that entries and tail leave. Of values that are normalised over the entries the
tail is said to be none, which `cachekd.exchange._identity` marks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cachekd.data import limits
from cachekd.exchange import Document, Mask, rows_of
from cachekd.exchange._scalars import disagreeing, impossible, placed, with_scalars
from cachekd.types import Float32, Int64, TopKLogits

NOTHING = -99.0
"""Entries at or below this have no mass (e^-99): fillers of rectangular formats, masked tokens."""
LEAST_TAIL = 2.0**-24
_LARGEST = 60.0  # of a logit: what is above cannot be summed in a row
_REASONS = (
    "",
    "values that are NaN or infinite",
    "token ids outside the vocabulary (another tokenizer?)",
    "log-probabilities above 0",
    "a token id that stands twice in a row",
    "mass above 1",
    "mass that is not 1, though values are normalised over the entries",
    "log-probabilities of the next token that cannot be",
    "a stored tail, entropy or normaliser that cannot be (NaN, a tail above 1, an entropy below 0)",
    "entries and a stored tail that do not add up to mass 1 (the column holds its logarithm?)",
    "a log-probability of the next token that is not told, though others are",
)
_NAN, _ID, _ABOVE, _TWICE, _MASS, _NOT_ONE, _NEXT, _SCALAR, _APART, _UNTOLD = range(
    1, len(_REASONS)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """What all documents of an import have in common.

    Attributes:
        vocab_size: real vocabulary V.
        values: logprobs, renormalised or logits.
        shift: tokens by which rows stand later than the format says.
        tolerance: how far a row's mass may be above 1.
        rescale: divide rows of more mass by it.
        scalars: names of scalars that are stored as they are; then nothing is derived of them.
        next_known: whether every row tells the log-probability of its next token.
    """

    vocab_size: int
    values: str
    shift: int = 0
    tolerance: float = 0.005
    rescale: bool = False
    scalars: tuple[str, ...] = ()
    next_known: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checked:
    """Targets of a document, and what was wrong with some of its rows.

    Attributes:
        logits: rows that cannot be used are empty.
        bad: such rows by reason, ascending.
        rescaled: rows that were divided by their mass.
        empty: entries without mass, which are left out.
        cut: stored rows that predict no token of the document.
        untold: rows that do not tell the log-probability of their next token, which is no entry.
    """

    logits: TopKLogits
    bad: dict[str, list[int]]
    rescaled: int
    empty: int
    cut: int
    untold: int


def problem_of(document: Document, vocab_size: int) -> str | None:
    """Why a document cannot be used at all, or None."""
    tokens = len(document.input_ids)
    if not 2 <= tokens <= limits.TOKENS:
        return f"{tokens} token ids; expected 2 to {limits.TOKENS}"
    least, most = int(document.input_ids.min()), int(document.input_ids.max())
    if least < 0 or most >= vocab_size:
        wrong = least if least < 0 else most
        return f"input_ids hold {wrong}; the tokenizer has {vocab_size} tokens (another tokenizer?)"
    if not len(document.ids) == len(document.logprobs) == document.counts.sum():
        return (
            f"{len(document.ids)} token ids, {len(document.logprobs)} values and rows of "
            f"{document.counts.sum()} entries do not agree"
        )
    if len(document.ids) > limits.ENTRIES:
        return f"{len(document.ids)} entries; at most {limits.ENTRIES} are read"
    if document.roles is not None and len(document.roles) != tokens:
        return f"roles of {len(document.roles)} tokens beside {tokens} token ids"
    return None


def check(document: Document, law: Law) -> Checked:
    """Targets of a document in which `problem_of` finds none."""
    rows = len(document.input_ids) - 1
    target_R = document.first + law.shift + np.arange(len(document.counts)) - 1
    inside_R = (target_R >= 0) & (target_R < rows)
    inside_n = np.repeat(inside_R, document.counts)
    row_n = np.repeat(target_R, document.counts)[inside_n]
    ids_n, logs_n = document.ids[inside_n], document.logprobs[inside_n].astype(np.float64)
    kept_n = ~(logs_n <= NOTHING)  # NaN stays, to be found
    row_n, ids_n, logs_n = row_n[kept_n], ids_n[kept_n], logs_n[kept_n]
    given_N = placed(document.next_logprob, target_R, inside_R, rows)
    columns = {n: placed(document.scalars[n], target_R, inside_R, rows, 0.0) for n in law.scalars}
    reasons_N = np.zeros(rows, np.int64)
    _find_entries(reasons_N, row_n, ids_n, logs_n, law)
    logs_n, rescaled_N = _scaled(reasons_N, row_n, logs_n, law)
    reasons_N[~(given_N <= law.tolerance) & ~np.isnan(given_N)] = _NEXT
    _find_scalars(reasons_N, row_n, logs_n, columns)
    untold_N = _untold(document, row_n, ids_n, given_N) & (reasons_N == 0)
    if law.next_known:
        reasons_N[untold_N] = _UNTOLD
    good_n = reasons_N[row_n] == 0
    row_n, ids_n, logs_n = row_n[good_n], ids_n[good_n], np.minimum(logs_n[good_n], 0.0)
    if not _in_order(row_n, ids_n, logs_n):
        order = np.lexsort((ids_n, -logs_n, row_n))
        row_n, ids_n, logs_n = row_n[order], ids_n[order], logs_n[order]
    logits = _targets(document, law, row_n, ids_n, logs_n, given_N, rows)
    return Checked(
        logits=with_scalars(logits, columns),
        bad={
            _REASONS[code]: np.flatnonzero(reasons_N == code).tolist()
            for code in np.unique(reasons_N)
            if code
        },
        rescaled=int((rescaled_N & (reasons_N == 0)).sum()),
        empty=int((~kept_n).sum()),
        cut=int((document.counts[~inside_R] > 0).sum()),
        untold=int(untold_N.sum()),
    )


def _untold(document: Document, row_n: Int64, ids_n: Int64, given_N: Float32) -> Mask:
    """Rows with entries of which none is the next token, and that do not tell it, bool [rows]."""
    held_N = np.bincount(row_n, minlength=len(given_N)) > 0
    held_N[row_n[ids_n == document.input_ids[1:][row_n]]] = False
    return np.asarray(held_N & np.isnan(given_N))


def _in_order(row_n: Int64, ids_n: Int64, logs_n: np.ndarray) -> bool:
    """Whether entries stand as they are stored: by row, best first, equal ones by id."""
    same = row_n[1:] == row_n[:-1]
    equal = same & (logs_n[1:] == logs_n[:-1])
    wrong = (row_n[1:] < row_n[:-1]) | (same & (logs_n[1:] > logs_n[:-1]))
    return not (wrong | (equal & (ids_n[1:] < ids_n[:-1]))).any()


def mass_of(row_n: Int64, logs_n: np.ndarray, rows: int) -> np.ndarray:
    """Mass of each row, float64 [rows]."""
    return np.bincount(row_n, np.exp(np.minimum(logs_n, _LARGEST)), rows)


def _find_entries(
    reasons_N: Int64, row_n: Int64, ids_n: Int64, logs_n: np.ndarray, law: Law
) -> None:
    """Mark rows by what is wrong with their entries; the graver reason is written last."""
    known_n = (ids_n >= 0) & (ids_n < law.vocab_size)
    places_n = np.sort(row_n[known_n] * law.vocab_size + ids_n[known_n])
    reasons_N[places_n[1:][np.diff(places_n) == 0] // law.vocab_size] = _TWICE
    if law.values != "logits":
        above = logs_n > (_LARGEST if law.rescale else law.tolerance)
        reasons_N[row_n[above]] = _ABOVE
    reasons_N[row_n[~known_n]] = _ID
    reasons_N[row_n[~np.isfinite(logs_n)]] = _NAN


def _find_scalars(
    reasons_N: Int64, row_n: Int64, logs_n: np.ndarray, columns: Mapping[str, Float32]
) -> None:
    """Mark rows whose entries are sound and whose stored scalars are not."""
    rows = len(reasons_N)
    sound_N = (reasons_N == 0) & (np.bincount(row_n, minlength=rows) > 0)
    if columns:
        reasons_N[sound_N & impossible(columns)] = _SCALAR
    if "tail" in columns:
        apart_N = disagreeing(columns["tail"], mass_of(row_n, logs_n, rows))
        reasons_N[sound_N & (reasons_N == 0) & apart_N] = _APART


def _scaled(
    reasons_N: Int64, row_n: Int64, logs_n: np.ndarray, law: Law
) -> tuple[np.ndarray, Mask]:
    """Values less the log of their row's mass, where that is the law, and rows so rescaled."""
    rows = len(reasons_N)
    if law.values == "logits":
        most_N = np.full(rows, -np.inf)
        np.maximum.at(most_N, row_n, logs_n)
        logs_n = logs_n - most_N[row_n]
    mass_N = mass_of(row_n, logs_n, rows)
    held_N = np.bincount(row_n, minlength=rows) > 0
    over_N = held_N & (mass_N > 1 + law.tolerance)
    off_N = held_N & (np.abs(mass_N - 1) > law.tolerance)
    sound_N = reasons_N == 0
    rescaled_N = np.zeros(rows, np.bool_)
    if law.values == "renormalised":
        reasons_N[sound_N & off_N] = _NOT_ONE
    elif law.values == "logprobs" and law.rescale:
        rescaled_N = over_N
    elif law.values == "logprobs":
        reasons_N[sound_N & over_N] = _MASS
    divided_N = held_N if law.values == "logits" else held_N & (mass_N > 1)
    norm_N = np.log(np.where(divided_N & (mass_N > 0), mass_N, 1.0))
    with np.errstate(invalid="ignore"):
        return logs_n - norm_N[row_n], rescaled_N


def _targets(
    document: Document,
    law: Law,
    row_n: Int64,
    ids_n: Int64,
    logs_n: np.ndarray,
    given_N: Float32,
    rows: int,
) -> TopKLogits:
    """Targets of sorted entries, with what follows from them."""
    counts_N = np.bincount(row_n, minlength=rows)
    offsets = np.concatenate([[0], np.cumsum(counts_N)]).astype(np.int64)
    held_N = counts_N > 0
    rest_N = np.maximum(1.0 - mass_of(row_n, logs_n, rows), LEAST_TAIL)
    whole_N = held_N & ((counts_N >= law.vocab_size) | (law.values != "logprobs"))
    with np.errstate(divide="ignore"):
        tail_N = np.where(held_N, np.log(np.where(whole_N, 0.0, rest_N)), 0.0)
    known_N = np.bincount(row_n, -np.exp(logs_n) * logs_n, rows)
    rest_entropy_N = np.where(held_N & ~whole_N, -rest_N * np.log(rest_N), 0.0)
    return TopKLogits(
        offsets=offsets,
        ids=ids_n.astype(np.int32),
        logprobs=logs_n.astype(np.float32),
        weights=None,
        tail=tail_N.astype(np.float32),
        next_logprob=_next(document, row_n, ids_n, logs_n, tail_N, given_N, offsets),
        lognorm={1.0: np.zeros(rows, np.float32)},
        entropy=np.maximum(known_N + rest_entropy_N, 0.0).astype(np.float32),
        vocab_size=law.vocab_size,
    )


def _next(
    document: Document,
    row_n: Int64,
    ids_n: Int64,
    logs_n: np.ndarray,
    tail_N: np.ndarray,
    given_N: Float32,
    offsets: Int64,
) -> Float32:
    """Log-probability of the next token: an entry's, else as given, else at most this."""
    held_N = np.diff(offsets) > 0
    bound_N = np.zeros(len(held_N))
    bound_N[held_N] = logs_n[offsets[1:][held_N] - 1]
    tails = held_N & (tail_N > -np.inf)
    bound_N[tails] = np.minimum(bound_N, tail_N)[tails]
    found_N = np.where(np.isnan(given_N), bound_N, np.minimum(given_N, 0.0))
    own_n = ids_n == document.input_ids[1:][row_n]
    found_N[row_n[own_n]] = logs_n[own_n]
    return np.where(held_N, found_N, 0.0).astype(np.float32)


__all__ = ["Checked", "LEAST_TAIL", "Law", "NOTHING", "check", "mass_of", "problem_of", "rows_of"]
