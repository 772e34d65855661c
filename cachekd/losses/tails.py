"""Tail models: how the mass outside a stored head is spread over the tokens that are not in it.

A bucket keeps the tail as one outcome: nothing is said of its inside. A model says something:

    flat       evenly
    unigram    like the square root of the teacher's mean distribution (a prior of the cache)
    log_rank   as a power law of the unigram rank r: log p falls by a for each step of log r, the
               exponent a of a row being what carries its head's last probability to its tail mass

With b_v = 0, log(unigram_v) / 2, or -log(rank_v), and a = 1 but for log_rank, a tail token has

    p_v = tail * exp(a b_v) / sum_{u outside the head} exp(a b_u)

at temperature 1. At another T the tail mass that the decode law gives is spread with a / T. The
divergence is 0 when the student equals the decoded target, head and tail. A capture at k = V has no
tail, and every model is then exact.

Where a is 1 for all rows, forward KL needs of the student's tail only one product with the shape
s_v = exp(b_v / T) a row, which costs next to nothing (`linear_tail`); else whole logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cachekd.errors import ConfigError
from cachekd.losses.ragged import entry_rows, segment_sum
from cachekd.losses.student import StudentRows
from cachekd.types import TargetTensors

_STEEPEST, _HALVINGS = 8.0, 40


def add_shape(targets: TargetTensors, vocab: int, temperature: float, tail: str) -> TargetTensors:
    """Targets with the shape that `linear_tail` takes, under its name."""
    log_shape_V = _log_shape(targets, vocab, tail) / temperature
    name = _shape_name(tail, temperature)
    taken: TargetTensors = {
        **targets,
        "shapes": {**targets.get("shapes", {}), name: log_shape_V.exp()},
    }
    return taken


def linear_tail(
    student: StudentRows, targets: TargetTensors, tail_R: Tensor, temperature: float, tail: str
) -> Tensor:
    """What the modelled tail adds to forward KL, [R]: sum of p (log p - log q) outside entries.

    Args:
        student: the student at these rows.
        targets: with the shape, see `add_shape`.
        tail_R: log tail mass at the temperature.
        temperature: T above 0.
        tail: flat or unigram.
    """
    name = _shape_name(tail, temperature)
    shape_V = targets["shapes"][name].double()
    entropy_V = shape_V * shape_V.log()
    outside_R = _outside(shape_V, targets)
    none_R = (tail_R == -torch.inf) | (outside_R <= 0)
    safe_R = torch.where(none_R, torch.ones_like(outside_R), outside_R)
    log_p_R = _outside(entropy_V, targets) / safe_R - safe_R.log()
    zeros_R = torch.zeros_like(tail_R)
    tail_R = torch.where(none_R, zeros_R, tail_R)
    log_q_R = student.tail_dot(name) / (temperature * safe_R.to(tail_R.dtype))
    log_q_R = log_q_R - student.outcomes(temperature).log_norm_R
    kl_R = tail_R.exp() * (tail_R + log_p_R.to(tail_R.dtype) - log_q_R)
    return torch.where(none_R, zeros_R, kl_R)


def dense_tail(
    student: StudentRows, targets: TargetTensors, tail_R: Tensor, temperature: float, tail: str
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of teacher and student in the tail, [R, V]; the teacher's -inf elsewhere.

    Args:
        student: the student at these rows, whole logits included.
        targets: targets of these rows; with ``unigram`` [V] for the models that rest on it.
        tail_R: log tail mass at the temperature.
        temperature: T above 0.
        tail: flat, unigram or log_rank.
    """
    logits_RV = student.logits()
    log_q_RV = torch.log_softmax(logits_RV / temperature, 1)
    with torch.no_grad():
        log_shape_V = _log_shape(targets, logits_RV.shape[1], tail).to(log_q_RV.dtype)
        log_p_RV = log_shape_V.expand_as(log_q_RV) / temperature
        if tail == "log_rank":
            steep_R = log_rank_exponent(targets, logits_RV.shape[1]).to(log_q_RV.dtype)
            log_p_RV = log_p_RV * steep_R[:, None]
        at = (entry_rows(targets["offsets"]), targets["ids"])
        log_p_RV = log_p_RV.contiguous().index_put_(at, log_p_RV.new_tensor(-torch.inf))
        norm_R = torch.logsumexp(log_p_RV, 1)
        # A row whose head is the whole vocabulary has no tail to spread.
        shift_R = torch.where(norm_R == -torch.inf, torch.zeros_like(norm_R), tail_R - norm_R)
        return log_p_RV + shift_R[:, None], log_q_RV


def _outside(values_V: Tensor, targets: TargetTensors) -> Tensor:
    """Sum over the tokens that are no entry of a row, float64 [R]."""
    own_n = values_V[targets["ids"]]
    inside_R = segment_sum(own_n, entry_rows(targets["offsets"]), len(targets["tail"]))
    return values_V.sum() - inside_R


def _shape_name(tail: str, temperature: float) -> str:
    return f"{tail} {temperature:g}"


def _log_shape(targets: TargetTensors, vocab: int, tail: str) -> Tensor:
    """B [V] of the module's text."""
    device = targets["tail"].device
    if tail == "flat":
        return torch.zeros(vocab, device=device)
    unigram = targets.get("unigram")
    if unigram is None:
        raise ConfigError(
            f"tail {tail!r} needs the teacher's unigram, which the targets come without. Use a "
            "cache with a prior (cachekd merge --recode gives it one), or --tail flat"
        )
    if tail == "unigram":
        return 0.5 * unigram.clamp_min(1e-30).log()
    rank_V = torch.empty_like(unigram)
    order = torch.argsort(unigram, descending=True, stable=True)
    rank_V[order] = torch.arange(1, vocab + 1, dtype=unigram.dtype, device=device)
    return -rank_V.log()


def log_rank_exponent(targets: TargetTensors, vocab: int) -> Tensor:
    """The exponent a of each row's power law, [N], 0 to 8.

    The law p(r) = p_K (r / K)^-a goes through the last of the K head entries and has the stored
    mass over ranks K+1 to V, taken as the integral from K + 1/2 to V + 1/2; found by bisection.
    """
    counts_N = targets["offsets"].diff()
    last_N = targets["logprobs"].double()[(targets["offsets"][1:] - 1).clamp_min(0)]
    k_N, v = counts_N.double().clamp_min(1), float(vocab)

    def log_mass(a_N: Tensor) -> Tensor:
        low, high = (k_N + 0.5).log(), torch.full_like(k_N, v + 0.5).log()
        power_N = 1 - a_N
        safe_N = torch.where(power_N.abs() < 1e-9, torch.full_like(power_N, 1e-9), power_N)
        gap_N = ((safe_N * high).exp() - (safe_N * low).exp()) / safe_N
        return last_N + a_N * k_N.log() + gap_N.clamp_min(1e-300).log()

    low_N, high_N = torch.zeros_like(k_N), torch.full_like(k_N, _STEEPEST)
    for _ in range(_HALVINGS):
        middle_N = (low_N + high_N) / 2
        too_much_N = log_mass(middle_N) > targets["tail"].double()
        low_N = torch.where(too_much_N, middle_N, low_N)
        high_N = torch.where(too_much_N, high_N, middle_N)
    return ((low_N + high_N) / 2).to(targets["tail"].dtype)
