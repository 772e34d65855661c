"""The nouns of cachekd: what flows from records to the student.

Shape suffixes of array and tensor names, used in the whole project:

    B batch rows    T positions in a row    L tokens of one document    V vocabulary
    N rows of targets, flattened over a batch    K support of one row    n entries of all supports
    A layers    H heads    G key heads (GQA)    R query rows of one document    D width of a head

Alignment law: a document of L tokens has exactly L-1 rows; row t holds the teacher's distribution
over ``input_ids[t + 1]`` given ``input_ids[: t + 1]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]


class Role(IntEnum):
    """Who wrote a token. Stored in a cache by number: numbers are never reused."""

    TEMPLATE = 0
    SYSTEM = 1
    USER = 2
    ASSISTANT = 3
    TOOL = 4
    TEXT = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One tokenised document before a teacher has seen it.

    Attributes:
        input_ids: token ids, int32 [L], L >= 2.
        roles: a `Role` for each token, uint8 [L].
        prompt_length: tokens before the completion where the data has prompt and completion,
            else None.
        domain: free label for routing and reports, "" if there is none.
        weight: weight of the sample's rows in a loss.
        source: name of the data file or dataset (provenance, not identity).
        row: row number in the source, from 0.
    """

    input_ids: Int32
    roles: UInt8
    prompt_length: int | None = None
    domain: str = ""
    weight: float = 1.0
    source: str = ""
    row: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TopKLogits:
    """Sparse next-token distributions of one document: L tokens, L-1 ragged rows.

    Row t owns the entries ``offsets[t]:offsets[t+1]``: the exact head, most probable first, then
    sampled entries if there are any. A row without entries was not captured.

    Attributes:
        offsets: int64 [L], first 0, last n.
        ids: token ids, int32 [n].
        logprobs: natural-log probabilities at temperature 1, float32 [n]; of a sampled entry the
            log of its weight.
        weights: None without sampled entries, else float32 [n]: 0 for an entry of the head; for a
            sampled entry its weight w > 0, such that the expectation of w summed over draws is the
            teacher's probability (an unbiased estimate).
        tail: log of the teacher's mass outside the exact head, float32 [L-1]; -inf when the head
            is the whole vocabulary; 0 on rows that were not captured.
        next_logprob: log-probability of ``input_ids[t+1]``, float32 [L-1].
        lognorm: for each captured temperature T, log sum_v p_v^(1/T), float32 [L-1].
        entropy: entropy in nats at temperature 1, float32 [L-1].
        vocab_size: real vocabulary V: padding rows of an embedding do not count.
    """

    offsets: Int64
    ids: Int32
    logprobs: Float32
    weights: Float32 | None
    tail: Float32
    next_logprob: Float32
    lognorm: Mapping[float, Float32]
    entropy: Float32
    vocab_size: int

    @property
    def rows(self) -> int:
        """Number of rows, L-1."""
        return len(self.offsets) - 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionRows:
    """Attention of a teacher over one document of L tokens: A layers, H heads, R query rows.

    Rows follow the alignment law: row t is the attention of position t, which predicts
    ``input_ids[t + 1]``; its causal keys are 0..t. The ragged rows are ordered by layer, then head,
    then query row: number (a * H + h) * R + r owns the entries ``offsets[i]:offsets[i + 1]``.

    Attributes:
        layers: layer numbers of the teacher, int32 [A].
        heads: head numbers of the teacher, int32 [H]; the single -1 is the mean of all heads.
        rows: query positions, ascending, int32 [R].
        weights: inverse probability of each row to be captured, float32 [R]: 1 unless rows were
            drawn; then sums weighted with it are unbiased for the sum over all rows.
        offsets: int64 [A * H * R + 1].
        keys: positions of the kept keys, ascending in a row, int32 [n].
        probs: their probabilities, float32 [n]; those of a row sum to 1 - rest.
        rest: mass of the causal keys that were not kept, float32 [A, H, R].
        length: keys that any row may have, L - 1.
    """

    layers: Int32
    heads: Int32
    rows: Int32
    weights: Float32
    offsets: Int64
    keys: Int32
    probs: Float32
    rest: Float32
    length: int

    def dense(self, layer: int) -> Float32:
        """Maps of the layer at this place, the rest spread over the causal keys not kept.

        Returns:
            float32 [H, R, L-1]; a row sums to 1, and is 0 after its own position.
        """
        heads, rows = len(self.heads), len(self.rows)
        first = layer * heads * rows
        offsets_N = self.offsets[first : first + heads * rows + 1]
        counts_N = np.diff(offsets_N)
        causal_N = np.tile(self.rows + 1, heads)
        share_N = self.rest[layer].reshape(-1) / np.maximum(causal_N - counts_N, 1)
        maps_NL = np.where(np.arange(self.length) < causal_N[:, None], share_N[:, None], 0)
        maps_NL = maps_NL.astype(np.float32)
        part = slice(int(offsets_N[0]), int(offsets_N[-1]))
        maps_NL[np.repeat(np.arange(heads * rows), counts_N), self.keys[part]] = self.probs[part]
        return maps_NL.reshape(heads, rows, self.length)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RolloutRows:
    """What is known of text that the student wrote, row by row; 0 on rows of the prompt.

    Attributes:
        old_logprob: log q of the next token under the student that wrote it, float32 [L-1].
        behaviour_logprob: log of the probability that it was drawn with, float32 [L-1].
        advantage: float32 [L-1].
    """

    old_logprob: Float32
    behaviour_logprob: Float32
    advantage: Float32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Record:
    """One sample as read from a cache: its tokens, who wrote them, and the teacher's targets.

    ``attention`` is None where the cache holds none, or was opened without it; ``expert`` says of
    a routed sample whether it is read from the cache called expert. ``rollout`` is there where the
    student wrote the response. ``skipped``, bool [L-1], marks rows that no teacher could give.
    """

    key: bytes
    sample_id: bytes
    input_ids: Int32
    roles: UInt8
    prompt_length: int | None
    domain: str
    weight: float
    logits: TopKLogits
    attention: AttentionRows | None = None
    expert: bool | None = None
    rollout: RolloutRows | None = None
    skipped: NDArray[np.bool_] | None = None


class TargetTensors(TypedDict):
    """Targets of the N trained rows of a batch, ragged (CSR), as tensors.

    ``offsets`` int64 [N+1], ``ids`` int64 [n], ``logprobs`` float32 [n], ``tail``,
    ``next_logprob``, ``entropy`` and ``weights`` float32 [N], ``next_ids`` int64 [N],
    ``lognorm`` {T: float32 [N]}. With sampled entries ``entry_weights`` float32 [n], 0 on the exact
    head (see `TopKLogits.weights`); for losses that ask for it ``unigram`` float32 [V], the
    teacher's mean distribution. ``expert`` bool [N], of routed samples: whether that is the cache
    called expert. ``document`` int64 [N]: which of a batch's documents a row belongs to,
    ascending. ``span`` int64 [N]: number of the phrase that a row's token belongs
    to, -1 outside phrases; rows of one phrase are neighbours. ``span_factor`` float32 [N]: what a
    pair of neighbours that begins in this row counts. ``shapes`` {name: float32 [V]}: how tail
    models spread a tail.

    Of on-policy batches: ``student_text`` bool [N]: whether the student wrote the row's document;
    ``old_logprob``, ``behaviour_logprob`` and ``advantage`` float32 [N]: see `RolloutRows`.
    ``part_scale`` float32 [N]: sum of all weights over those of the row's part (student text, or
    the data's own), over the whole step: with it a mean over all rows is the sum of both means.
    """

    offsets: Tensor
    ids: Tensor
    logprobs: Tensor
    tail: Tensor
    next_ids: Tensor
    next_logprob: Tensor
    entropy: Tensor
    weights: Tensor
    lognorm: dict[float, Tensor]
    entry_weights: NotRequired[Tensor]
    unigram: NotRequired[Tensor]
    expert: NotRequired[Tensor]
    document: NotRequired[Tensor]
    span: NotRequired[Tensor]
    span_factor: NotRequired[Tensor]
    shapes: NotRequired[dict[str, Tensor]]
    student_text: NotRequired[Tensor]
    old_logprob: NotRequired[Tensor]
    behaviour_logprob: NotRequired[Tensor]
    advantage: NotRequired[Tensor]
    part_scale: NotRequired[Tensor]


class AttentionDocument(TypedDict):
    """Where a document with attention is: its batch row and its first place there.

    ``length``: its keys, L - 1; ``rows``: its query rows that are captured and trained.
    """

    batch_row: int
    start: int
    length: int
    rows: int


class AttentionTargets(TypedDict):
    """The teacher's attention over the documents of a batch, for rows that are trained, as tensors.

    Few tensors, as they pass from worker to trainer: R query rows of all ``documents``, in their
    order. ``positions`` int64 [R]: query positions, each in its document, ascending there;
    ``weights`` float32 [R]: sample weight times inverse probability of a row to be captured;
    ``rest`` float32 [A, H, R]. ``keys`` int32 [n] and ``probs`` float32 [n] are ragged rows as in
    `AttentionRows`, document after document: ``offsets`` int64 [A * H * R + 1].
    """

    documents: list[AttentionDocument]
    positions: Tensor
    weights: Tensor
    rest: Tensor
    offsets: Tensor
    keys: Tensor
    probs: Tensor


class Batch(TypedDict):
    """What a collator gives and a trainer takes: the same from a cache or from a live teacher.

    ``input_ids``, ``position_ids`` and ``labels`` (-100 where not trained, not shifted) int64
    [B, T]; ``attention_mask`` int64 [B, T], or None when documents are packed; ``rows`` int64 [N]:
    indices into the flattened [B*T] student rows whose next token is trained. ``attention``, where
    it was asked for: what rows of the student's attention learn from.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor
    labels: Tensor
    rows: Tensor
    targets: TargetTensors
    attention: NotRequired[AttentionTargets]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObjectiveOutput:
    """Sums over the rows of a batch, so that accumulation and many processes add up exactly.

    Attributes:
        loss_sum: weighted sum over rows, differentiable scalar.
        weight_sum: sum of row weights, scalar; ``loss_sum / weight_sum`` is the mean loss.
        metrics: further weighted sums over the same rows, detached scalars.
        counts: weight sums of the metrics that are means over other rows than all.
    """

    loss_sum: Tensor
    weight_sum: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, Tensor] = field(default_factory=dict)
