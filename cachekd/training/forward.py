"""One forward pass of the student over a batch, and the proof that packing is safe with it.

In: a model of transformers and a `Batch`. Out: logits, or what is made of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cachekd.errors import MismatchError
from cachekd.rollouts.modes import inference
from cachekd.types import Batch

_SHORT = 8


def run_student(model: Any, batch: Batch) -> Any:
    """The model's output for a batch, padded or packed."""
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"]}
    if batch["attention_mask"] is None:
        inputs["position_ids"] = batch["position_ids"]
    else:
        # Rows are padded on the right, where the model's own positions are the right ones.
        inputs["attention_mask"] = batch["attention_mask"]
    return model(**inputs, use_cache=False)


def check_packing(model: Any, vocab_size: int, device: Any, rows: int = 1) -> None:
    """Run two short documents packed and apart, and refuse a model that lets them touch.

    Args:
        model: the student, on its device.
        vocab_size: ids below this are used.
        device: where its inputs go.
        rows: packed rows in the batch; some attention kernels part documents in one row only.

    Raises:
        MismatchError: the logits of packed documents differ from those of the documents alone.
    """
    document = (torch.arange(2 * _SHORT, device=device) * 7 + 1) % vocab_size
    joined, alone = document[None].expand(rows, -1), document[_SHORT:][None]
    restarted = torch.arange(_SHORT, device=device).repeat(2)[None].expand(rows, -1)
    running = torch.arange(2 * _SHORT, device=device)[None].expand(rows, -1)
    ones = torch.ones_like(joined)
    with inference(model):
        expected = _logits(model, input_ids=alone, attention_mask=ones[:1, :_SHORT])
        try:
            packed = _logits(model, input_ids=joined, position_ids=restarted)
        except TypeError as error:
            raise MismatchError(
                f"{_name(model)} takes no position_ids ({error}), by which packed documents are "
                "kept apart; use --no-packing"
            ) from error
        touching = _logits(model, input_ids=joined, position_ids=running, attention_mask=ones)
    found = (packed[:, _SHORT:] - expected).abs().max()
    if_touching = (touching[:, _SHORT:] - expected).abs().max()
    rounding = 8 * torch.finfo(expected.dtype).eps * expected.abs().max()
    # Two scales: rounding for models whose documents hardly matter to each other, and the effect of
    # touching documents for deep models, whose rounding is larger than a few ulps.
    if found > rounding and found > 0.25 * if_touching:
        raise MismatchError(
            f"{_name(model)} does not separate packed documents: their logits differ by "
            f"{found.item():.3g} from those of the documents alone; use --no-packing"
        )


def _logits(model: Any, **inputs: Any) -> Tensor:
    logits: Tensor = model(**inputs, use_cache=False).logits
    return logits


def _name(model: Any) -> str:
    return type(getattr(model, "module", model)).__name__
