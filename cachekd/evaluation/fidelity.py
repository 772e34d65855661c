"""What sparse targets lose: retained mass, KL to the dense distribution, squared error.

Comes in: dense rows and the decoded targets of the same rows. Goes out: figures a row, float64.
The decoded target is a whole distribution once its tail mass is spread over the tokens outside the
head: evenly (``flat``), or like the square root of the teacher's mean distribution (``unigram``),
which is within 2 % of the best power for every support that was tried. The entropies of the dense
rows give the sums over the tail without a pass over it: float64 leaves an error of about 1e-15.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cachekd.codecs import CodecHeader
from cachekd.evaluation.dense import DenseRows, Float64
from cachekd.store.identity import Identity
from cachekd.teachers import Selection
from cachekd.types import Float32, Int32, Int64, TopKLogits

# A tail that rounding took away counts as this much, so that one row's KL stays finite.
_LEAST_TAIL = 1e-6
_TINY = 1e-300

MASS_TEMPERATURES = (1.0, 2.0, 4.0)
"""Temperatures that mass is measured at; each is twice the one before."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unigram:
    """Weights of the tail, the square root of a mean distribution: values and logs, float64 [V]."""

    root: Float64
    log_root: Float64

    @classmethod
    def of(cls, log_unigram: np.ndarray) -> Unigram:
        """From the natural logs of a unigram."""
        log_root = log_unigram.astype(np.float64) / 2
        return cls(root=np.exp(log_root), log_root=log_root)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """Dense rows at temperature T, with what is summed over the whole vocabulary.

    Attributes:
        p_NV: probabilities at T = 1.
        norm_N: sum_v p_v^(1/T).
        entropy_N: entropy at T in nats.
        temperature: T.
    """

    p_NV: Float64
    norm_N: Float64
    entropy_N: Float64
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Head:
    """Entries of the exact heads, flat [n]: row, token, decoded log-prob; and tails [N]."""

    row_n: Int64
    ids_n: Int32
    log_q_n: Float64
    tail_N: Float64
    counts_N: Int64

    def summed(self, values_n: Float64) -> Float64:
        """Sum of values over the head of each row."""
        return summed(self.row_n, values_n, len(self.tail_N))


def references(dense: DenseRows) -> dict[float, Reference]:
    """The rows at each temperature that mass is measured at."""
    logs = np.log(np.maximum(dense.p_NV, _TINY))
    found, raised = {}, dense.p_NV
    for t in MASS_TEMPERATURES:
        raised = raised if t == 1 else np.sqrt(raised)
        norm = raised.sum(1)
        mean_log = np.einsum("nv,nv->n", raised, logs) / norm
        found[t] = Reference(
            p_NV=dense.p_NV, norm_N=norm, entropy_N=np.log(norm) - mean_log / t, temperature=t
        )
    return found


def fidelity(
    dense: dict[float, Reference], decoded: TopKLogits, unigram: Unigram | None
) -> dict[str, Float64]:
    """Figures of N rows.

    Args:
        dense: see `references`.
        decoded: targets of the same N rows, as a codec gives them back.
        unigram: weights of the tail, or None to leave that figure out.

    Returns:
        float64 [N] each: ``mass_1``, ``mass_2``, ``mass_4``: dense mass of the exact head at that
        temperature; ``kl_flat``, ``kl_unigram``: KL(dense || decoded) at T = 1; ``kl_flat_2`` the
        same at T = 2, if that log-normaliser was captured; ``error``: sum_v (q_v - p_v)^2 with a
        flat tail.
    """
    head = _head_of(decoded)
    figures = {}
    for t, at in dense.items():
        kept = at.p_NV[head.row_n, head.ids_n] ** (1 / t)
        figures[f"mass_{t:g}"] = head.summed(kept) / at.norm_N
    figures["kl_flat"] = _kl(dense[1.0], head, None)
    if unigram is not None:
        figures["kl_unigram"] = _kl(dense[1.0], head, unigram)
    if 2.0 in decoded.lognorm:
        warm = _raised(head, decoded.lognorm[2.0], 2.0)
        figures["kl_flat_2"] = _kl(dense[2.0], warm, None)
    figures["error"] = _squared_error(dense[1.0], head)
    return figures


def summed(row_n: Int64, values_n: Float64, rows: int) -> Float64:
    """Sums of values by their row, float64 [rows]."""
    sums: Float64 = np.bincount(row_n, values_n, rows).astype(np.float64)
    return sums


def _head_of(decoded: TopKLogits) -> _Head:
    """The exact head by the decode law: scaled to sum to 1 - tail."""
    counts = np.diff(decoded.offsets)
    row_n = np.repeat(np.arange(len(counts)), counts)
    exact = np.ones(len(row_n), bool) if decoded.weights is None else decoded.weights == 0
    row_n, ids_n = row_n[exact], decoded.ids[exact]
    logs = decoded.logprobs[exact].astype(np.float64)
    tail = np.exp(np.minimum(decoded.tail.astype(np.float64), 0.0))
    mass = summed(row_n, np.exp(logs), len(counts))
    shift = np.log(np.maximum(1 - tail, _TINY)) - np.log(np.maximum(mass, _TINY))
    return _Head(
        row_n=row_n,
        ids_n=ids_n,
        log_q_n=logs + shift[row_n],
        tail_N=tail,
        counts_N=np.bincount(row_n, minlength=len(counts)),
    )


def _raised(head: _Head, lognorm_N: Float32, temperature: float) -> _Head:
    """The head at another temperature by the decode law; the tail is what is left to 1."""
    log_q = head.log_q_n / temperature - lognorm_N.astype(np.float64)[head.row_n]
    mass = head.summed(np.exp(log_q))
    full = (head.tail_N == 0) | (mass >= 1)
    shift = np.where(full, -np.log(np.maximum(mass, _TINY)), 0.0)
    return _Head(
        row_n=head.row_n,
        ids_n=head.ids_n,
        log_q_n=log_q + shift[head.row_n],
        tail_N=np.where(full, 0.0, 1 - mass),
        counts_N=head.counts_N,
    )


def _kl(dense: Reference, head: _Head, unigram: Unigram | None) -> Float64:
    """KL(dense || decoded), its tail spread evenly or by the unigram, [N]."""
    t = dense.temperature
    p = dense.p_NV[head.row_n, head.ids_n] ** (1 / t) / dense.norm_N[head.row_n]
    log_p = np.log(np.maximum(p, _TINY))
    inside = head.summed(p * (log_p - head.log_q_n))
    rest = np.maximum(1 - head.summed(p), 0.0)
    rest_plogp = -dense.entropy_N - head.summed(p * log_p)
    outside = dense.p_NV.shape[1] - head.counts_N
    log_tail = np.log(np.maximum(head.tail_N, _LEAST_TAIL))
    if unigram is None:
        cross = rest * (log_tail - np.log(np.maximum(outside, 1)))
    else:  # of log(tail * root_v / sum of roots outside), at T = 1
        roots = unigram.root.sum() - head.summed(unigram.root[head.ids_n])
        logs = dense.p_NV @ unigram.log_root - head.summed(p * unigram.log_root[head.ids_n])
        cross = rest * (log_tail - np.log(np.maximum(roots, _TINY))) + logs
    total: Float64 = inside + np.where(outside > 0, rest_plogp - cross, 0.0)
    return total


def _squared_error(dense: Reference, head: _Head) -> Float64:
    p = dense.p_NV[head.row_n, head.ids_n]
    rest, outside = np.maximum(1 - head.summed(p), 0.0), dense.p_NV.shape[1] - head.counts_N
    squares = np.einsum("nv,nv->n", dense.p_NV, dense.p_NV) - head.summed(p * p)
    each = np.where(outside > 0, head.tail_N / np.maximum(outside, 1), 0.0)
    spread = squares - 2 * each * rest + outside * each**2
    inside = head.summed((np.exp(head.log_q_n) - p) ** 2)
    total: Float64 = inside + np.maximum(spread, 0.0)
    return total


def header_of(
    identity: Identity, selection: Selection, codec: str, prior: str | None = None
) -> CodecHeader:
    """How targets of a capture are rounded, whatever they are packed with."""
    values = identity.capture["logprobs"]
    return CodecHeader(
        codec=codec,
        vocab_size=identity.source["vocab_size"],
        values=values["values"],
        step=values.get("step"),
        samples=selection.samples,
        tau=selection.tau,
        temperatures=selection.temperatures,
        prior=prior,
    )
