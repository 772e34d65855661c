"""What a teacher gave of a batch, checked before anything of it is kept, whatever backend it is.

Comes in: targets of documents, and what was asked. Goes out: targets of which every row that was
asked for is a distribution or empty; rows that are none are an error, or are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cachekd.data.attention import AttentionSpec
from cachekd.errors import BadTargets, TeacherError
from cachekd.teachers import Selection
from cachekd.types import Float32, Int32, TopKLogits

Rows = NDArray[np.bool_]
_MASS_ERROR = 0.01
_ROUNDING = 1e-4
_SHOWN = 5


def checked(
    scores: Sequence[TopKLogits],
    documents: Sequence[Int32],
    wanted: Sequence[Rows | None],
    selection: Selection,
) -> list[TopKLogits]:
    """The same targets; where the selection skips bad rows, these are empty.

    Args:
        scores: what the teacher gave.
        documents: token ids of each, int32 [L].
        wanted: rows that were asked for, bool [L-1], or None for all.
        selection: what was asked.

    Raises:
        TeacherError: records, rows, tokens or arrays are not those that were asked for.
        BadTargets: rows are no distribution; names them.
    """
    if len(scores) != len(documents):
        raise TeacherError(f"expected targets of {len(documents)} documents; found {len(scores)}")
    found, bad = [], {}
    for place, (target, ids_L, rows) in enumerate(zip(scores, documents, wanted, strict=True)):
        _check_shape(target, len(ids_L) - 1, selection)
        asked = np.ones(target.rows, bool) if rows is None else rows
        counts = np.diff(target.offsets)
        if counts[~asked].any():
            raise TeacherError("expected no entries on rows that were not asked for; found some")
        none = asked & ((counts == 0) | _faulty(target, counts))
        if none.any():
            bad[place] = none.nonzero()[0].tolist()
        found.append(_without(target, none) if selection.skip_bad else target)
    if bad and not selection.skip_bad:
        count = sum(map(len, bad.values()))
        raise BadTargets(f"{count} rows are no distribution (NaN, infinite, or of other mass)", bad)
    return found


def check_attention(arrays: Sequence[Float32], spec: AttentionSpec, rows: Rows, place: int) -> None:
    """Refuse attention of a layer that cannot be stored.

    A map is of a layer and all its keys, so no row of it is let go: it is always an error.

    Args:
        arrays: what the teacher told of a document; see `cachekd.teachers.LayerSink`.
        spec: what is kept.
        rows: the query rows, bool [L-1].
        place: which of the kept layers.

    Raises:
        TeacherError: arrays are missing, of another shape, not finite, or rows of maps do not sum
            to 1.
    """
    heads, queries, length = len(spec.heads), int(rows.sum()), len(rows)
    expected: list[tuple[int, ...]] = [(heads, queries, length)]
    if spec.kind == "qk":
        keys = len(spec.stored_key_heads)
        expected = [(heads, queries, spec.head_width), (keys, length, spec.head_width)]
    layer = spec.layers[place]
    found = [array.shape for array in arrays]
    if found != expected:
        raise TeacherError(
            f"attention of layer {layer}: expected arrays of shape {expected}; found {found}. "
            "Pass --attention none, or use another teacher"
        )
    fine = all(bool(np.isfinite(array).all()) for array in arrays)
    if fine and spec.kind == "maps":
        (maps_HRL,) = arrays
        fine = bool((np.abs(maps_HRL.sum(-1, dtype=np.float64) - 1) <= _MASS_ERROR).all())
    if not fine:
        raise TeacherError(
            f"attention of layer {layer} is NaN, infinite, or does not sum to 1. Check the "
            "teacher's weights and dtype, or pass --attention none"
        )


def check_arrived(found: Mapping[int, bytes], spec: AttentionSpec) -> None:
    """Refuse a document of which some layers told nothing.

    Raises:
        TeacherError: names them.
    """
    silent = [layer for place, layer in enumerate(spec.layers) if place not in found]
    if silent:
        raise TeacherError(
            f"the teacher gives no attention of layers {', '.join(map(str, silent))}. Pass "
            "--attention none, or use another teacher"
        )


def left_out(target: TopKLogits, wanted: Rows | None) -> tuple[int, ...]:
    """Rows that were asked for and are empty, of checked targets."""
    empty = np.diff(target.offsets) == 0
    rows: list[int] = (empty if wanted is None else empty & wanted).nonzero()[0].tolist()
    return tuple(rows)


def positions(rows: Sequence[int]) -> str:
    """Positions of a document in words: row t is the distribution after token t, from 0."""
    shown = ", ".join(map(str, rows[:_SHOWN]))
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f"position{'s' if len(rows) > 1 else ''} {shown}{more}"


def _check_shape(target: TopKLogits, rows: int, selection: Selection) -> None:
    """Arrays that fit each other, the document and the vocabulary."""
    if target.rows != rows:
        raise TeacherError(
            f"expected {rows} rows of targets for {rows + 1} tokens; found {target.rows}"
        )
    if target.vocab_size != selection.vocab_size:
        raise TeacherError(
            f"expected targets over {selection.vocab_size} tokens; found {target.vocab_size}"
        )
    ids, entries = target.ids, int(target.offsets[-1])
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < target.vocab_size:
        raise TeacherError(
            f"expected token ids in [0, {target.vocab_size}); found {ids.min()} to {ids.max()}"
        )
    missing = sorted(set(selection.temperatures) - set(target.lognorm))
    if missing:
        raise TeacherError(f"expected a log-normaliser at temperature {missing[0]}; found none")
    sampled = bool(selection.tau or selection.samples)
    if (target.weights is not None) != sampled:
        raise TeacherError(f"expected weights of sampled entries: {sampled}; found {not sampled}")
    own = [ids, target.logprobs, *([] if target.weights is None else [target.weights])]
    ordered = target.offsets[0] == 0 and bool((np.diff(target.offsets) >= 0).all())
    if (
        not ordered
        or any(len(values) != entries for values in own)
        or any(len(values) != rows for values in _scalars(target))
    ):
        raise TeacherError("expected entries and scalars that fit their rows; found others")


def _scalars(target: TopKLogits) -> list[Float32]:
    return [target.tail, target.next_logprob, target.entropy, *target.lognorm.values()]


def _faulty(target: TopKLogits, counts: NDArray[np.int64]) -> Rows:
    """Rows with a value that no distribution has, or whose mass is not 1, bool [L-1]."""
    next_N, entropy_N = target.next_logprob, target.entropy
    faulty = ~np.isfinite(entropy_N) | ~(target.tail <= _ROUNDING) | ~(next_N <= _ROUNDING)
    for values in target.lognorm.values():
        faulty |= ~np.isfinite(values)
    row_n = np.repeat(np.arange(len(counts)), counts)
    logs_n = target.logprobs.astype(np.float64)
    fine_n = np.isfinite(logs_n) & (logs_n <= _ROUNDING)
    mass_n = np.exp(np.where(fine_n, logs_n, 0.0))
    faulty |= np.bincount(row_n, ~fine_n, len(counts)) > 0
    if target.weights is not None:
        mass_n = np.where(target.weights > 0, 0.0, mass_n)
        faulty |= np.bincount(row_n, ~(target.weights >= 0), len(counts)) > 0
    with np.errstate(over="ignore"):
        whole_N = np.bincount(row_n, mass_n, len(counts)) + np.exp(target.tail.astype(np.float64))
    return faulty | ~(np.abs(whole_N - 1) <= _MASS_ERROR)


def _without(target: TopKLogits, rows: Rows) -> TopKLogits:
    """Targets with an empty support, and scalars of 0, on these rows."""
    if not rows.any():
        return target
    counts = np.diff(target.offsets)
    kept_n = ~np.repeat(rows, counts)

    def cleared(values_N: Float32) -> Float32:
        return np.where(rows, np.float32(0), values_N)

    return replace(
        target,
        offsets=np.concatenate([[0], np.cumsum(np.where(rows, 0, counts))]).astype(np.int64),
        ids=target.ids[kept_n],
        logprobs=target.logprobs[kept_n],
        weights=None if target.weights is None else target.weights[kept_n],
        tail=cleared(target.tail),
        next_logprob=cleared(target.next_logprob),
        entropy=cleared(target.entropy),
        lognorm={t: cleared(values_N) for t, values_N in target.lognorm.items()},
    )
