"""Whether rows stand where the format says: the tokens of the text speak for one shift.

A row predicts one token; that token is far more probable under its own row than under the rows
beside it. Comes in: some documents. Goes out: the mean log-probability of the text under each
shift, and a refusal where another shift than the one in use explains it far better.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from cachekd.errors import MismatchError
from cachekd.exchange import Document, rows_of
from cachekd.exchange._rows import NOTHING

_SHIFTS = (-1, 0, 1)
_FEWEST = 32  # rows that can tell
_BETTER = 0.5  # nats a row
_CERTAIN = 6.0  # standard errors of the difference
_LEAST = 1e-4
_log = logging.getLogger(__name__)


def refuse_other_shift(
    documents: Sequence[Document], shift: int | None, vocab_size: int, values: str
) -> dict[str, float]:
    """Compare shifts beside the one in use.

    Args:
        documents: some of the source.
        shift: as the user gave it, which is only warned of; None: as the format has it.
        vocab_size: real vocabulary V.
        values: of logits, each row is normalised first.

    Returns:
        mean log-probability of the text's tokens by shift; nothing where rows are too few.

    Raises:
        MismatchError: another shift explains the text far better; says which.
    """
    own = shift or 0
    parts = [_scores(document, own, vocab_size, values) for document in documents]
    scores_SN = np.concatenate(parts, axis=1) if parts else np.empty((len(_SHIFTS), 0))
    rows = scores_SN.shape[1]
    if rows < _FEWEST:
        return {}
    means = scores_SN.mean(1)
    best = int(means.argmax())
    gain_N = scores_SN[best] - scores_SN[_SHIFTS.index(0)]
    error = gain_N.std() / np.sqrt(rows)
    told = {str(own + step): float(mean) for step, mean in zip(_SHIFTS, means, strict=True)}
    if _SHIFTS[best] and gain_N.mean() > max(_BETTER, _CERTAIN * error):
        other = own + _SHIFTS[best]
        text = (
            f"the rows explain the text far better with --shift {other} (mean log-probability of "
            f"its tokens {means[best]:.2f}) than with --shift {own} "
            f"({means[_SHIFTS.index(0)]:.2f}), over {rows} rows: they stand beside the tokens that "
            "they predict"
        )
        if shift is None:
            raise MismatchError(f"import: {text}. Give --shift {other}, or --shift 0 to insist")
        _log.warning("import: %s; imported as asked", text)
    return told


def _scores(document: Document, own: int, vocab_size: int, values: str) -> np.ndarray:
    """Log-probability of the text's token under each shift, for rows that have one under all."""
    length, counts_R = len(document.input_ids), document.counts
    target_R = document.first + own + np.arange(len(counts_R))
    row_n, logs_n = rows_of(counts_R), document.logprobs.astype(np.float64)
    good_n = np.isfinite(logs_n) & (logs_n > NOTHING)
    row_n, ids_n, logs_n = row_n[good_n], document.ids[good_n], logs_n[good_n]
    if values == "logits":
        most_R = np.full(len(counts_R), -np.inf)
        np.maximum.at(most_R, row_n, logs_n)
        logs_n = logs_n - most_R[row_n]
        sums_R = np.bincount(row_n, np.exp(logs_n), len(counts_R))
        logs_n = logs_n - np.log(sums_R)[row_n]
    mass_R = np.bincount(row_n, np.exp(np.minimum(logs_n, 0.0)), len(counts_R))
    held_R = np.bincount(row_n, minlength=len(counts_R)) > 0
    compared_R = held_R & (target_R >= 2) & (target_R < length - 1)
    scores = []
    for step in _SHIFTS:
        tokens_R = document.input_ids[np.clip(target_R + step, 0, length - 1)]
        scores_R = np.log(np.maximum(1 - mass_R, _LEAST)) - np.log(vocab_size)
        hit_n = ids_n == tokens_R[row_n]
        scores_R[row_n[hit_n]] = logs_n[hit_n]
        scores.append(scores_R[compared_R])
    return np.stack(scores)
