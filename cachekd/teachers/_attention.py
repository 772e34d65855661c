"""What a Hugging Face model attends to, layer by layer, while it scores.

Fused kernels (sdpa, flash) never make the maps, so the model runs its own eager attention, called
through a function registered with transformers' attention interface. That function sees queries and
keys after RoPE and the finished maps of one layer, hands what was chosen of them to a sink, and
lets them go: the maps of two layers never exist at once. Whatever a model adds to its attention
(soft caps, windows, ALiBi) is in the maps, because its own code makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cachekd.data.attention import MEAN, AttentionSpec, eager_attention
from cachekd.errors import TeacherError
from cachekd.teachers import LayerSink
from cachekd.types import Float32

if TYPE_CHECKING:
    from torch import Tensor

NAME = "cachekd_eager"
_SUM_ERROR = 0.03  # of a row of bfloat16 probabilities
# Total variation of a row that is recomputed in float32; eager attention in half precision rounds
# scores themselves, by tenths of a nat where they are large.
_MAP_ERROR = {"torch.float32": 0.02, "torch.float64": 0.02}
_MAP_ERROR_HALF = 0.2


class _Tap:
    """Takes what one forward pass attends to."""

    def __init__(
        self, spec: AttentionSpec, rows: Sequence[NDArray[np.bool_]], sink: LayerSink
    ) -> None:
        self._spec = spec
        self._rows = rows
        self._sink = sink
        self.seen: set[int] = set()

    def take(self, layer: int, query: Tensor, key: Tensor, maps: Tensor, scaling: float) -> None:
        """One layer: [B, H, T, D], [B, G, T, D] and [B, H, T, T]."""
        if layer not in self._spec.layers:
            return
        shape = (query.shape[1], key.shape[1], query.shape[-1])
        expected = (self._spec.teacher_heads, self._spec.key_heads, self._spec.head_width)
        if shape != expected or maps is None or maps.shape[1] != expected[0]:
            raise TeacherError(
                f"attention of layer {layer}: config.json says (heads, key heads, width) "
                f"{expected}; the model gives {shape}. Its attention cannot be captured"
            )
        place = self._spec.layers.index(layer)
        for b, rows in enumerate(self._rows):
            if self._spec.kind == "qk":
                self._sink(b, place, self._queries(layer, rows, query[b], key[b], maps[b], scaling))
            else:
                self._sink(b, place, (self._maps(layer, rows, maps[b]),))
        self.seen.add(layer)

    def _maps(self, layer: int, rows: NDArray[np.bool_], maps_HTT: Tensor) -> Float32:
        """Chosen heads and rows of a document without its padding; each row sums to 1."""
        import torch

        length = len(rows)
        index = torch.from_numpy(rows.nonzero()[0]).to(maps_HTT.device)
        heads = self._spec.heads
        some_HRL = maps_HTT if heads == (MEAN,) else maps_HTT[list(heads)]
        some_HRL = some_HRL[:, index, :length].float()
        causal_RL = torch.arange(length, device=index.device) <= index[:, None]
        some_HRL = some_HRL * causal_RL
        sums_HR1 = some_HRL.sum(-1, keepdim=True)
        if not bool(((sums_HR1 - 1).abs() <= _SUM_ERROR).all()):
            raise TeacherError(
                f"attention of layer {layer}: a row of causal probabilities does not sum to 1 (NaN "
                "weights, or a model with sinks or without causal mask). Pass --attention none"
            )
        some_HRL = some_HRL / sums_HR1
        if heads == (MEAN,):
            some_HRL = some_HRL.mean(0, keepdim=True)
        array: Float32 = some_HRL.cpu().numpy()
        return array

    def _queries(
        self,
        layer: int,
        rows: NDArray[np.bool_],
        q_HTD: Tensor,
        k_GTD: Tensor,
        maps_HTT: Tensor,
        scaling: float,
    ) -> tuple[Float32, Float32]:
        """Chosen queries and keys, once the last row's map was found to follow from them."""
        import torch

        length, root = len(rows), scaling**0.5
        q_HLD = q_HTD[list(self._spec.heads), :length].float() * root
        k_GLD = k_GTD[list(self._spec.stored_key_heads), :length].float() * root
        scores_HL = torch.einsum("hd,hld->hl", q_HLD[:, -1], k_GLD[list(self._spec.groups)])
        true_HL = maps_HTT[list(self._spec.heads), length - 1, :length].float()
        error = (scores_HL.softmax(-1) - true_HL).abs().sum(-1).max() / 2
        if not bool(error <= _MAP_ERROR.get(str(q_HTD.dtype), _MAP_ERROR_HALF)):
            raise TeacherError(
                f"attention of layer {layer} is more than the softmax of queries and keys "
                f"(difference {float(error):.3f}: a window, soft cap, bias, sink, or NaN). Pass "
                "--attention maps"
            )
        index = torch.from_numpy(rows.nonzero()[0]).to(q_HLD.device)
        return q_HLD[:, index].cpu().numpy(), k_GLD.cpu().numpy()


_TAP: ContextVar[_Tap | None] = ContextVar("cachekd_attention_tap", default=None)


def install(model: Any) -> None:
    """Send a model that was loaded with eager attention through `_forward`.

    Raises:
        TeacherError: the model does not use transformers' attention interface.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    try:
        model.set_attn_implementation(NAME)
    except (ValueError, AttributeError, KeyError, ImportError) as error:
        raise TeacherError(f"{_silent()} ({error})") from error
    if model.config._attn_implementation != NAME:
        raise TeacherError(_silent())


@contextmanager
def tapped(
    spec: AttentionSpec, rows: Sequence[NDArray[np.bool_]], sink: LayerSink
) -> Iterator[None]:
    """See `cachekd.teachers.AttentiveTeacher.attention`."""
    tap = _Tap(spec, rows, sink)
    token = _TAP.set(tap)
    try:
        yield
    finally:
        _TAP.reset(token)
    silent = sorted(set(spec.layers) - tap.seen)
    if silent:
        raise TeacherError(f"{_silent()} (layers {', '.join(map(str, silent))})")


def _silent() -> str:
    return (
        "the teacher gives no attention maps: its attention does not go through transformers' "
        "attention interface. Pass --attention none, or use another teacher"
    )


def _forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> Any:
    """The model's own eager attention; what it attends to goes to the tap, if there is one."""
    output, maps = _eager(module)(module, query, key, value, attention_mask, **kwargs)
    tap = _TAP.get()
    if tap is not None:
        scaling = kwargs.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        tap.take(int(getattr(module, "layer_idx", -1)), query, key, maps, float(scaling))
    return output, maps


def _eager(module: Any) -> Callable[..., Any]:
    found = eager_attention(module)
    if found is None:
        raise TeacherError(_silent())
    return found
