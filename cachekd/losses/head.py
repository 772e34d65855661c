"""The last step of a model, hidden states to logits, in chunks of rows and with its gradient.

In: last hidden states and what stands after them: a matrix, a bias, a scale, a soft cap. Out:
float32 logits of a chunk in memory that is used again for the next, and, once their gradient is
known, those of hidden states, matrix and bias. Products run in the dtype of the model (or of
autocast); sums over chunks are float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ELEMENTS = {"cpu": 1 << 23}
_ELEMENTS_DEVICE = 1 << 27
_FEWEST_ROWS = 128


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """What a model does to its last hidden states: cap * tanh(scale * (W h + b) / cap).

    Attributes:
        weight_VD: W, at least as many rows as the vocabulary has tokens.
        bias_V: b, or None.
        scale: 1 for none.
        softcap: cap, or None for none: the logits are then scale * (W h + b).
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


def chunk_rows(device_type: str, width: int) -> int:
    """Rows of logits that exist at once on this kind of device.

    Fewer would read the matrix more often than its products are worth.
    """
    return max(_FEWEST_ROWS, _ELEMENTS.get(device_type, _ELEMENTS_DEVICE) // max(width, 1))


class HeadRows:
    """Logits of hidden states, a chunk at a time, and the gradient of what they are made of.

    Args:
        hidden_ND: last hidden states of the rows.
        head: what is done to them.
        vocab_size: logits beyond it are cut off.
        wanted: whether the gradient of hidden states, of the matrix and of the bias is wanted.
        dtype: of the products; default: that of the hidden states.
    """

    def __init__(
        self,
        hidden_ND: Tensor,
        head: Head,
        vocab_size: int,
        wanted: tuple[bool, bool, bool],
        dtype: torch.dtype | None = None,
    ) -> None:
        self.rows, self.width = len(hidden_ND), vocab_size
        self.device = hidden_ND.device
        self._head = head
        dtype = dtype or hidden_ND.dtype
        self._work = torch.promote_types(dtype, torch.float32)
        self._hidden_ND = hidden_ND.to(dtype)
        self._weight_VD = head.weight_VD[:vocab_size].to(dtype)
        self._of_hidden = self._zeros(hidden_ND) if wanted[0] else None
        self._of_weight = self._zeros(head.weight_VD) if wanted[1] else None
        self._of_bias = self._zeros(head.bias_V) if wanted[2] and head.bias_V is not None else None
        self._buffer = torch.empty((0, vocab_size), dtype=self._work, device=self.device)
        self._capped_RV: Tensor | None = None

    def _zeros(self, like: Tensor) -> Tensor:
        return torch.zeros(like.shape, dtype=self._work, device=like.device)

    def logits(self, rows: slice) -> Tensor:
        """Logits of some rows, [R, V]; the memory is that of the chunk before."""
        hidden_RD = self._hidden_ND[rows]
        if len(self._buffer) < len(hidden_RD):
            shape = (len(hidden_RD), self.width)
            self._buffer = torch.empty(shape, dtype=self._work, device=self.device)
        logits_RV = self._buffer[: len(hidden_RD)]
        if self._work == hidden_RD.dtype:
            torch.mm(hidden_RD, self._weight_VD.t(), out=logits_RV)
        else:
            logits_RV.copy_(hidden_RD @ self._weight_VD.t())
        if self._head.bias_V is not None:
            logits_RV += self._head.bias_V[: self.width]
        if self._head.scale != 1.0:
            logits_RV *= self._head.scale
        if self._head.softcap is not None:
            logits_RV.div_(self._head.softcap).tanh_()
            self._capped_RV = logits_RV.clone()
            logits_RV *= self._head.softcap
        return logits_RV

    def accept(self, rows: slice, grad_RV: Tensor) -> None:
        """Add what a chunk's gradient by its logits means; the gradient is used up."""
        if self._capped_RV is not None:
            grad_RV.mul_(1 - self._capped_RV.square_())
        if self._head.scale != 1.0:
            grad_RV *= self._head.scale
        if self._of_bias is not None:
            self._of_bias[: self.width] += grad_RV.sum(0)
        hidden_RD = self._hidden_ND[rows]
        grad_RV = grad_RV.to(hidden_RD.dtype)
        if self._of_hidden is not None:
            self._of_hidden[rows] += grad_RV @ self._weight_VD
        if self._of_weight is None:
            return
        of_weight = self._of_weight[: self.width]
        if self._work == hidden_RD.dtype:
            of_weight.addmm_(grad_RV.t(), hidden_RD)
        else:
            of_weight += grad_RV.t() @ hidden_RD

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of hidden states, matrix and bias, as far as wanted."""
        return self._of_hidden, self._of_weight, self._of_bias


class LogitRows:
    """The same where a model's logits are there already: chunks of copies of them.

    Args:
        logits_NV: logits over at least the vocabulary.
        vocab_size: logits beyond it are cut off.
        wanted: whether their gradient is wanted.
    """

    def __init__(self, logits_NV: Tensor, vocab_size: int, wanted: bool) -> None:
        self.rows, self.width = len(logits_NV), vocab_size
        self.device = logits_NV.device
        self._logits_NV = logits_NV
        self._of_logits = torch.zeros_like(logits_NV) if wanted else None

    def logits(self, rows: slice) -> Tensor:
        """Logits of some rows, [R, V], a copy."""
        own_RV = self._logits_NV[rows, : self.width]
        dtype = torch.promote_types(own_RV.dtype, torch.float32)
        return own_RV.to(dtype, copy=True, memory_format=torch.contiguous_format)

    def accept(self, rows: slice, grad_RV: Tensor) -> None:
        """Add a chunk's gradient."""
        if self._of_logits is not None:
            self._of_logits[rows, : self.width] += grad_RV.to(self._of_logits.dtype)

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Of the logits, if wanted."""
        return (self._of_logits,)
