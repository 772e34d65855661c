"""The attention loss of a student, taken while it runs its own attention: no maps are made.

In: a model of transformers, the mapping of its layers and heads, and batches with attention. Out:
for each forward pass the sum over rows of the mean over mapped layers and heads of KL(A^t || A^s)
("A Teacher Is Worth A Million Instructions", Eq. 4), as part of its graph.

Whatever attention a model runs (sdpa, flash, eager), transformers hands it queries and keys after
RoPE; there the loss of a layer is taken, of the rows that the batch holds and of no others. The
model's own attention then runs as always.

Gradient checkpointing runs a layer again in the backward pass, and must then save what it saved at
first: a pass stays the current one until the next begins, and what is computed again is not added.
So the backward pass of one forward pass comes before the next forward pass; the other order is
refused where a layer is run again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cachekd.errors import MismatchError
from cachekd.losses.attention import AttentionMapping
from cachekd.losses.attention_kl import ScoreRule, TeacherRows, attention_kl, log_maps
from cachekd.training.attention_interface import listen, plain, run_eager, silent

if TYPE_CHECKING:
    from cachekd.types import AttentionTargets, Batch

# Total variation of a row of the probe; eager attention in half precision rounds scores themselves.
_MAP_ERROR = {torch.float32: 1e-3, torch.float64: 1e-3}
_MAP_ERROR_HALF = 0.2


@dataclass(slots=True, eq=False)
class _Pass:
    """One forward pass: what it learns from, and what was summed so far.

    ``grad``: whether gradients are recorded; ``alone``: no earlier pass waits for its backward
    pass; ``open``: it runs; ``waits``: its loss was given out and has no gradient yet.
    """

    targets: AttentionTargets
    grad: bool
    alone: bool
    open: bool = True
    waits: bool = False
    total: Tensor | None = None
    loss: Tensor | None = None
    seen: set[int] = field(default_factory=set)

    def went_back(self, gradient: Tensor) -> None:
        """Called with the gradient of its loss, which then lets go of the graph and of this pass.

        The targets stay until the next pass: checkpointing may yet run a layer again.
        """
        assert self.total is not None and self.loss is not None, "it has a gradient"
        self.waits, self.total, self.loss = False, self.total.detach(), self.loss.detach()


class StudentAttention:
    """Listens to a student's attention and takes its loss.

        with tap.watching(batch):
            output = model(...)
        loss = loss + weight * tap.output()

    Args:
        model: the student, with or without peft adapters; wrap it (DDP) before or after.
        mapping: what of it learns from what.

    Raises:
        MismatchError: the mapping is of another student; the model's attention does not go through
            transformers' attention interface; or its maps are more than the softmax of causal
            products of queries and keys (ALiBi, sinks, biases).
    """

    def __init__(self, model: Any, mapping: AttentionMapping) -> None:
        inner = plain(model)
        self.mapping = mapping
        self._name = type(inner).__name__
        self._places = {pair.student: pair.place for pair in mapping.layers}
        self._pass: _Pass | None = None
        self._errors: dict[int, float] = {}
        self._check_layers(inner.config.get_text_config())
        listen(inner, self)
        run_eager(inner)
        self._check_maps(inner.dtype)

    @contextmanager
    def watching(self, batch: Batch) -> Iterator[None]:
        """Take the loss of the one forward pass of the model that runs inside.

        Raises:
            MismatchError: the batch holds no attention.
        """
        if "attention" not in batch:
            raise MismatchError(
                "the batch holds no attention. Make the collator with attention=True"
            )
        now = self._pass = _Pass(
            targets=batch["attention"],
            grad=torch.is_grad_enabled(),
            alone=self._pass is None or not self._pass.waits,
        )
        try:
            yield
        finally:
            now.open = False

    def output(self) -> Tensor:
        """The loss of the last pass: a sum over rows, float32; divide it by all rows' weights.

        Raises:
            MismatchError: a mapped layer was silent.
        """
        now = self._pass
        assert now is not None, "output() comes after watching()"
        if now.total is None or now.seen != set(self._places):
            raise silent(self._name)
        if now.loss is None:
            now.loss = now.total / len(self._places)
            if now.loss.requires_grad:
                now.waits = True
                now.loss.register_hook(now.went_back)  # type: ignore[no-untyped-call]
        return now.loss

    def take(self, module: Any, query: Tensor, key: Tensor, settings: dict[str, Any]) -> None:
        """One call of a layer's attention: [B, H, T, D], [B, G, T, D] and its keyword arguments."""
        layer, now = module.layer_idx, self._pass
        if layer not in self._places or now is None:
            return
        if not now.open and not _in_backward():
            return  # a pass that nobody watches
        _check_checkpointing(now)
        self._check_shapes(layer, query, key)
        loss = self._loss(layer, query, key, _rule(query, settings))
        if now.open:
            if layer in now.seen:
                raise MismatchError(f"{self._name} ran layer {layer} twice in one watched pass")
            now.seen.add(layer)
            now.total = loss if now.total is None else now.total + loss

    def compare(
        self, module: Any, query: Tensor, key: Tensor, maps: Any, settings: dict[str, Any]
    ) -> None:
        """Before the first pass: how far a layer's own maps are from those that the loss takes."""
        if self._pass is not None or module.layer_idx not in self._places:
            return
        self._check_shapes(module.layer_idx, query, key)
        error = float("inf")
        if isinstance(maps, Tensor) and maps.shape[1] == query.shape[1]:
            positions = torch.arange(query.shape[2], device=query.device)
            own = log_maps(query[0], key[0], positions, _rule(query, settings)).exp()
            error = float((own - maps[0].to(own)).abs().sum(-1).max() / 2)
        self._errors[module.layer_idx] = error

    def _loss(self, layer: int, query: Tensor, key: Tensor, rule: ScoreRule) -> Tensor:
        assert self._pass is not None
        total = query.new_zeros((), dtype=torch.promote_types(query.dtype, torch.float32))
        targets, first = self._pass.targets, 0
        for document in targets["documents"]:
            row, start = document["batch_row"], document["start"]
            rows = slice(first, first + document["rows"])
            teacher, first = _teacher_rows(targets, rows, self._places[layer]), rows.stop
            query_HRD = query[row][:, start + teacher.positions]
            key_GLD = key[row][:, start : start + document["length"]]
            total = total + attention_kl(query_HRD, key_GLD, teacher, rule, self.mapping.heads)
        return total

    def _check_layers(self, config: Any) -> None:
        """Refuse a student of another depth, and layers that see neither all keys nor a window."""
        layers = config.num_hidden_layers
        if layers != self.mapping.student.layers:
            raise MismatchError(
                f"the mapping is of a student of {self.mapping.student.layers} layers; "
                f"{self._name} has {layers}. Map this student"
            )
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * layers
        for layer in self._places:
            if kinds[layer] not in ("full_attention", "sliding_attention"):
                raise MismatchError(
                    f"layer {layer} of {self._name} is of kind {kinds[layer]!r}; the attention "
                    "loss knows full_attention and sliding_attention. Train without it"
                )

    def _check_maps(self, dtype: torch.dtype) -> None:
        """Refuse a model that said nothing, or whose maps do not follow from queries and keys."""
        if set(self._errors) != set(self._places):
            raise silent(self._name)
        for layer, error in self._errors.items():
            if not error <= _MAP_ERROR.get(dtype, _MAP_ERROR_HALF):
                raise MismatchError(
                    f"attention of layer {layer} of {self._name} is more than the softmax of "
                    f"causal products of queries and keys (difference {error:.3g}: a bias such as "
                    "ALiBi, a sink, or NaN weights). Train without attention loss"
                )

    def _check_shapes(self, layer: int, query: Tensor, key: Tensor) -> None:
        if query.shape[1] != self.mapping.student.heads:
            raise MismatchError(
                f"layer {layer} of {self._name} has {query.shape[1]} heads; its config.json says "
                f"{self.mapping.student.heads}. Train without attention loss"
            )
        if key.shape[2] != query.shape[2]:
            raise MismatchError(
                f"layer {layer} of {self._name} has {key.shape[2]} keys for {query.shape[2]} "
                "queries: the attention loss takes passes without cached or added keys. Pass "
                "use_cache=False, and no prefix"
            )


def _check_checkpointing(now: _Pass) -> None:
    """Refuse what gradient checkpointing would make wrong without a sign of it."""
    if now.open and now.grad and not torch.is_grad_enabled():
        raise MismatchError(
            "the attention loss needs gradient checkpointing without re-entrance: pass "
            "gradient_checkpointing_kwargs={'use_reentrant': False}"
        )
    if not now.open and not now.alone:
        raise MismatchError(
            "gradient checkpointing runs layers again for the last forward pass alone, and an "
            "earlier one still waits for its backward pass. Call backward() after each forward pass"
        )


def _teacher_rows(targets: AttentionTargets, rows: slice, place: int) -> TeacherRows:
    """A captured layer of the document that has these rows."""
    layers, heads, _ = targets["rest"].shape
    size = heads * (rows.stop - rows.start)
    first = layers * heads * rows.start + place * size
    return TeacherRows(
        positions=targets["positions"][rows],
        weights=targets["weights"][rows],
        offsets=targets["offsets"][first : first + size + 1],
        keys=targets["keys"],
        probs=targets["probs"],
        rest=targets["rest"][place][:, rows],
    )


def _rule(query: Tensor, settings: dict[str, Any]) -> ScoreRule:
    scaling = settings.get("scaling")
    return ScoreRule(
        scaling=float(query.shape[-1] ** -0.5 if scaling is None else scaling),
        window=settings.get("sliding_window"),
        softcap=settings.get("softcap"),
    )


def _in_backward() -> bool:
    """Whether autograd is running, as `torch.utils.checkpoint` finds it out."""
    return bool(torch._C._current_graph_task_id() != -1)
