"""`cachekd.sparse_divergence`: a cached teacher's divergence from hidden states, in one call.

For own training loops: plain tensors in, sums out. The objectives of ``cachekd train`` are made of
the same parts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cachekd.losses import divergences
from cachekd.losses.choice import Divergence
from cachekd.losses.fused import Reading, fused_loss
from cachekd.losses.head import Head
from cachekd.losses.student import StudentRows
from cachekd.losses.tails import add_shape
from cachekd.types import ObjectiveOutput, TargetTensors


def sparse_divergence(
    hidden_ND: Tensor,
    lm_head_weight: Tensor,
    targets: TargetTensors,
    *,
    divergence: str = "forward_kl",
    weight: float = 0.5,
    temperature: float = 1.0,
    tail: str = "bucket",
    kd: float = 1.0,
    ce: float = 0.0,
    lm_head_bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
) -> ObjectiveOutput:
    """Sum over rows of ``kd * T^2 * D(teacher, student) + ce * CE``, fused with the head.

    Never holds the [N, V] logits: they are made in chunks of rows, and gradients with them.

    Args:
        hidden_ND: last hidden states of the N trained rows, [N, D], any float dtype.
        lm_head_weight: matrix of the head, [V or more, D].
        targets: what the teacher says of these rows, as `cachekd.Collator` makes it; each row
            counts with ``targets["weights"]``.
        divergence: forward_kl, reverse_kl, jeffreys, jsd, skew_kl, skew_reverse_kl or tvd; their
            formulas stand in `cachekd.losses.divergences`.
        weight: the w of these formulas: of the reverse term, the mixture, the skew.
        temperature: T of both sides; it must have been captured.
        tail: bucket, flat, unigram, log_rank or renormalised.
        kd: weight of the divergence.
        ce: weight of cross entropy with the actual next token, at temperature 1.
        lm_head_bias: bias of the head, [V or more].
        logit_scale: factor on the logits.
        softcap: c of ``c * tanh(logits / c)``, after the factor.
        vocab_size: real vocabulary V; rows of the matrix beyond it are left out.

    Returns:
        ``loss_sum``, differentiable once by hidden states, matrix and bias, and ``weight_sum``:
        their ratio is the mean loss. ``metrics``: sums ``kd`` (the divergence without T^2), ``ce``
        and ``tail_mass`` (the student's probability outside the teacher's exact head).

    Raises:
        ConfigError: there is no such divergence or tail, or the targets do not serve it.
    """
    spec = Divergence(name=divergence, weight=weight, temperature=temperature, tail=tail)
    head = Head(weight_VD=lm_head_weight, bias_V=lm_head_bias, scale=logit_scale, softcap=softcap)
    vocab = vocab_size or len(lm_head_weight)
    with torch.no_grad():
        targets = shaped(targets, vocab, spec)
    reading = Reading(temperatures=(temperature,), dense=spec.dense)

    def loss(student: StudentRows, rows: TargetTensors) -> ObjectiveOutput:
        return weighted_sum(student, rows, spec, kd=kd, ce=ce, name="kd")

    return fused_loss(hidden_ND, head, targets, loss, reading, vocab)


def shaped(targets: TargetTensors, vocab: int, spec: Divergence) -> TargetTensors:
    """Targets with the shape of the tail model, where the divergence takes one."""
    if spec.tail in ("flat", "unigram") and not spec.dense:
        return add_shape(targets, vocab, spec.temperature, spec.tail)
    return targets


def weighted_sum(
    student: StudentRows,
    targets: TargetTensors,
    spec: Divergence,
    *,
    kd: float,
    ce: float,
    name: str,
) -> ObjectiveOutput:
    """The loss of `sparse_divergence` at some rows.

    A term without weight is left out of the loss, not multiplied by 0: that would turn inf into
    nan. It is measured all the same.
    """
    kd_R, ce_R = divergences.divergence(student, targets, spec), -student.next_log_q()
    weights_R = targets["weights"].to(ce_R.dtype)
    kd_sum, ce_sum = (weights_R * kd_R).sum(), (weights_R * ce_R).sum()
    loss_sum = torch.zeros_like(ce_sum)
    if kd:
        loss_sum = loss_sum + kd * spec.temperature**2 * kd_sum
    if ce:
        loss_sum = loss_sum + ce * ce_sum
    mass_R = divergences.student_tail_mass(student, targets, spec.temperature).to(ce_R.dtype)
    return ObjectiveOutput(
        loss_sum=loss_sum,
        weight_sum=weights_R.sum(),
        metrics={
            name: kd_sum.detach(),
            "ce": ce_sum.detach(),
            "tail_mass": (weights_R * mass_R).sum(),
        },
    )
