"""A language model's logits, some rows at a time: the body runs once, the head on wanted rows.

Comes in: a causal model of transformers. Goes out: logits of chosen rows in chunks, so that
[tokens, vocabulary] never exists at once. What a model does to its logits (bias, scaling,
soft-capping) is its own code: the model's ``forward`` runs again over hidden states of a chunk,
with its decoder replaced by one that hands them out. A small forward when the teacher is loaded
shows whether that gives the model's own logits; where it does not, whole logits are taken, with a
warning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cachekd.errors import TeacherError
from cachekd.teachers._memory import one_memory_error

# Elements of the logits that exist at once.
_CHUNK_ELEMENTS = {"cpu": 1 << 25}
_CHUNK_ELEMENTS_DEVICE = 1 << 28
_PROBE = (2, 4)
_CANNOT = (TeacherError, AttributeError, TypeError, ValueError, RuntimeError, IndexError)
_log = logging.getLogger(__name__)


def chunk_rows(device_type: str, width: int) -> int:
    """Rows whose logits are made at once on this kind of device."""
    return max(1, _CHUNK_ELEMENTS.get(device_type, _CHUNK_ELEMENTS_DEVICE) // width)


class LogitRows:
    """Logits of chosen rows of a model.

    Attributes:
        chunked: whether the head runs on chunks of rows; else whole logits are made first.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model = model
        self._device = device
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._decoder = base.get_decoder() if hasattr(base, "get_decoder") else base
        why = "its decoder cannot be told from its head" if self._decoder is base else self._probe()
        self.chunked = why is None
        if why:
            _log.warning(
                "%s: the head cannot be run on chunks of rows: %s. Logits of whole batches are "
                "made: lower --batch-tokens if memory is short",
                type(base).__name__,
                why,
            )

    def chunks(self, tokens_BT: Tensor, mask_BT: Tensor, rows_N: Tensor) -> Iterator[Tensor]:
        """Logits [n, V] of rows of the flattened batch, in their order, a chunk at a time."""
        if not self.chunked:
            logits_RV = _of_tokens(self.whole(tokens_BT, mask_BT), tokens_BT)
            step = chunk_rows(logits_RV.device.type, logits_RV.shape[-1])
            for part_n in torch.split(rows_N.to(logits_RV.device), step):
                yield logits_RV[part_n]
            return
        hidden_BTD, kind = self.body(tokens_BT, mask_BT)
        hidden_RD = _of_tokens(hidden_BTD, tokens_BT)
        rows_N = rows_N.to(hidden_RD.device)
        for part_n in torch.split(rows_N, chunk_rows(hidden_RD.device.type, self._width)):
            if len(part_n):
                yield self.head(hidden_RD[part_n], kind)

    def whole(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Logits [B, T, V] of all positions at once."""
        logits_BTV: Tensor = self._forward(tokens_BT, mask_BT).logits
        return logits_BTV

    def _forward(self, tokens_BT: Tensor, mask_BT: Tensor) -> Any:
        return self._model(input_ids=tokens_BT, attention_mask=mask_BT, use_cache=False)

    def body(self, tokens_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, type]:
        """Last hidden states [B, T, D], and the class of the decoder's output."""
        own, held = self._decoder.forward, []

        def keep(*args: Any, **kwargs: Any) -> Any:
            output = own(*args, **kwargs)
            held.append(output)
            return type(output)(last_hidden_state=output.last_hidden_state[:, :1])

        with _forward_of(self._decoder, keep):
            self._forward(tokens_BT, mask_BT)
        (output,) = held
        return output.last_hidden_state, type(output)

    def head(self, hidden_nD: Tensor, kind: type) -> Tensor:
        """Logits [n, V] that the model makes of these hidden states; ``kind`` is of `body`."""
        tokens_1n = torch.zeros((1, len(hidden_nD)), dtype=torch.int64, device=self._device)
        with _forward_of(self._decoder, lambda *_, **__: kind(last_hidden_state=hidden_nD[None])):
            logits_1nV: Tensor = self._forward(tokens_1n, torch.ones_like(tokens_1n)).logits
        return _of_tokens(logits_1nV, tokens_1n)

    def _probe(self) -> str | None:
        """Why chunks do not give the model's own logits, to rounding, or None."""
        tokens_BT = torch.arange(8, device=self._device).view(_PROBE)
        mask_BT = torch.ones_like(tokens_BT)
        with torch.inference_mode():
            whole_RV = self._forward(tokens_BT, mask_BT).logits.flatten(0, 1)
            rows_N = torch.arange(len(whole_RV), device=whole_RV.device).flip(0)
            self._width = whole_RV.shape[-1]
            self.chunked = True
            try:
                with one_memory_error():
                    parts = list(self.chunks(tokens_BT, mask_BT, rows_N))
            except _CANNOT as error:
                return f"{type(error).__name__}: {error}"
        chunked_NV, wanted_NV = torch.cat(parts).float(), whole_RV[rows_N].float()
        if chunked_NV.shape != wanted_NV.shape:
            return f"it gives logits of shape {tuple(chunked_NV.shape)}"
        # Equal infinities (tokens that a model rules out) have no difference, and no size.
        sizes_NV = wanted_NV.abs().masked_fill(wanted_NV.isinf(), 0)
        allowed = (4 * torch.finfo(whole_RV.dtype).eps + 1e-5) * float(sizes_NV.max())
        off_NV = (chunked_NV - wanted_NV).abs().masked_fill(chunked_NV == wanted_NV, 0)
        worst = float(off_NV.max())
        return None if worst <= allowed else f"its logits then differ by {worst:.3g}"


def _of_tokens(values_BTX: Tensor, tokens_BT: Tensor) -> Tensor:
    """Rows of a batch, one a token.

    Raises:
        TeacherError: there are more or fewer: rows would be those of other tokens.
    """
    if values_BTX.shape[:2] != tokens_BT.shape:
        raise TeacherError(
            f"the teacher gives rows of shape {tuple(values_BTX.shape[:2])} for tokens of shape "
            f"{tuple(tokens_BT.shape)}: expected one row a token"
        )
    return values_BTX.flatten(0, 1)


@contextmanager
def _forward_of(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Within, the module runs another function; hooks that replaced its own come back after."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
