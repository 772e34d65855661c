"""What a vLLM engine says of a prompt in its flat form, as targets of its rows.

Comes in: ``FlatLogprobs`` of one prompt: all entries one after another, place t scoring token t,
the first place empty. An entry of the prompt's own token stands first and may come again among the
best. Goes out: `TopKLogits`, the same as `cachekd.teachers._vllm_rows` makes of dictionaries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.errors import MismatchError, TeacherError
from cachekd.teachers import Selection
from cachekd.teachers._vllm_rows import BEYOND, EXCESS, IMPOSSIBLE, LEAST_TAIL
from cachekd.types import Int32, TopKLogits

_Ids = NDArray[np.int64]
_Logs = NDArray[np.float64]
_Mask = NDArray[np.bool_]


def flat_targets(flat: Any, ids_L: Int32, wanted: _Mask, selection: Selection) -> TopKLogits:
    """Targets of a document.

    Args:
        flat: ``prompt_logprobs`` of its request.
        ids_L: its token ids.
        wanted: rows to keep, bool [L-1]; others get no entries.
        selection: what is kept; no samples, temperature 1.

    Raises:
        TeacherError: places are missing, or the values are no log-probabilities.
        MismatchError: the teacher gives mass to ids beyond the vocabulary.
    """
    ids_NE, logs_NE, real_NE = _ranked(*_table(flat, len(ids_L)))
    p_NE = np.where(real_NE, np.exp(np.minimum(logs_NE, 1.0)), 0.0)
    known_NE = real_NE & (ids_NE < selection.vocab_size)
    _check_mass(p_NE, known_NE, selection.vocab_size)
    own_N = _own(ids_NE, logs_NE, real_NE, ids_L[1:])
    keep_NE = _kept(np.where(known_NE, p_NE, 0.0), known_NE, logs_NE, selection)
    keep_NE &= wanted[:, None]
    tail_N, entropy_N = _rest(np.where(keep_NE, p_NE, 0.0), np.where(keep_NE, logs_NE, 0.0))
    return TopKLogits(
        offsets=np.concatenate([[0], np.cumsum(keep_NE.sum(1))]).astype(np.int64),
        ids=ids_NE[keep_NE].astype(np.int32),
        logprobs=logs_NE[keep_NE].astype(np.float32),
        weights=None,
        tail=np.where(wanted, tail_N, 0.0).astype(np.float32),
        next_logprob=np.where(wanted, own_N, 0.0).astype(np.float32),
        lognorm={1.0: np.zeros(len(wanted), dtype=np.float32)},
        entropy=np.where(wanted, entropy_N, 0.0).astype(np.float32),
        vocab_size=selection.vocab_size,
    )


def _table(flat: Any, length: int) -> tuple[_Ids, _Logs]:
    """Entries of all places but the first, [L-1, E]; short places end with id -1."""
    starts, ends = (np.asarray(v, np.int64) for v in (flat.start_indices, flat.end_indices))
    if len(starts) != length or starts[0] != ends[0]:
        raise TeacherError(
            f"expected log-probabilities of {length} places, the first without any; the engine "
            f"gives {len(starts)}"
        )
    widths_N = (ends - starts)[1:]
    place_E = np.arange(int(widths_N.max(initial=0)))
    there_NE = place_E < widths_N[:, None]
    at_NE = np.where(there_NE, starts[1:, None] + place_E, 0)
    ids_NE = np.where(there_NE, np.asarray(flat.token_ids, np.int64)[at_NE], -1)
    return ids_NE, np.where(there_NE, np.asarray(flat.logprobs, np.float64)[at_NE], -np.inf)


def _ranked(ids_NE: _Ids, logs_NE: _Logs) -> tuple[_Ids, _Logs, _Mask]:
    """Entries best first, of equal ones the lower id, and which are real: each token once."""
    order_NE = np.lexsort((ids_NE, -logs_NE), axis=-1)
    ids_NE = np.take_along_axis(ids_NE, order_NE, 1)
    logs_NE = np.take_along_axis(logs_NE, order_NE, 1)
    real_NE = ids_NE >= 0
    real_NE[:, 1:] &= ids_NE[:, 1:] != ids_NE[:, :-1]
    return ids_NE, logs_NE, real_NE


def _check_mass(p_NE: _Logs, known_NE: _Mask, vocab_size: int) -> None:
    if (p_NE.sum(1) > 1 + EXCESS).any():
        raise TeacherError(
            f"the engine gives values that are no log-probabilities: they sum to "
            f"{np.nanmax(p_NE.sum(1)):.4g}. Use a vLLM whose logprobs_mode raw_logprobs is what "
            "its name says"
        )
    beyond_N = np.where(known_NE, 0.0, p_NE).sum(1)
    if (beyond_N > BEYOND).any():
        raise MismatchError(
            f"the teacher gives {beyond_N.max():.2g} of a row's probability to ids beyond the "
            f"vocabulary of {vocab_size}: expected its own tokenizer"
        )


def _own(ids_NE: _Ids, logs_NE: _Logs, real_NE: _Mask, next_N: Int32) -> _Logs:
    """Log-probability of the token that follows each row."""
    found_NE = real_NE & (ids_NE == next_N[:, None])
    if not found_NE.any(1).all():
        raise TeacherError("the engine leaves the prompt's own token out of a place")
    own_N = logs_NE[np.arange(len(next_N)), found_NE.argmax(1)]
    return np.where(own_N <= IMPOSSIBLE, -np.inf, own_N)


def _kept(p_NE: _Logs, known_NE: _Mask, logs_NE: _Logs, selection: Selection) -> _Mask:
    """Entries that a selection keeps; those that are no number are kept, to be found out."""
    rank_NE = np.cumsum(known_NE, 1) - 1
    before_NE = np.cumsum(p_NE, 1) - p_NE
    in_p_NE = (before_NE < selection.p) | (rank_NE < selection.min_k) | (selection.p >= 1.0)
    in_k_NE = known_NE & (rank_NE < selection.k)
    likely_NE = (p_NE >= selection.min_prob) | (rank_NE == 0)
    kept_NE: _Mask = in_k_NE & in_p_NE & likely_NE & ~(logs_NE <= IMPOSSIBLE)
    return kept_NE


def _rest(p_NE: _Logs, logs_NE: _Logs) -> tuple[_Logs, _Logs]:
    """Log of the mass outside the kept entries, and the entropy that these and the tail have."""
    tail_N = np.maximum(1.0 - p_NE.sum(1), LEAST_TAIL)
    entropy_N = -(p_NE * logs_NE).sum(1) - tail_N * np.log(tail_N)
    return np.log(tail_N), np.maximum(entropy_N, 0.0)
