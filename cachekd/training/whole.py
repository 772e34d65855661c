"""Whole tensors of a run that may be sharded over processes (FSDP2), and the other way round.

In: a model or an optimizer. Out: its state as one process would have it, or the state of one put
into the shards of all. Every process must call, and each reads the same files. So a checkpoint does
not depend on how many processes wrote it, and any number goes on from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from cachekd.errors import ConfigError

_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
_INDEX = "model.safetensors.index.json"


def optimizer_state(optimizer: Any, *, keep: bool) -> dict[str, Any]:
    """The state of an optimizer with whole tensors on the CPU, as torch writes that of one process.

    Args:
        optimizer: of shards or of whole parameters.
        keep: whether this process wants them; one that does not only takes part.
    """
    state: dict[str, Any] = optimizer.state_dict()
    whole = {
        number: {name: _gathered(value, keep) for name, value in own.items()}
        for number, own in state["state"].items()
    }
    return {**state, "state": whole if keep else {}}


def load_optimizer(optimizer: Any, state: Mapping[str, Any]) -> None:
    """Take over the state that `optimizer_state` gave, in the shards of this process."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    own = {
        number: {name: _sharded_as(parameters[number], value) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": own})


def load_weights(model: Any, folder: Path) -> None:
    """Take over the weights of a checkpoint, or of its adapter where the model has one.

    Raises:
        ConfigError: the checkpoint lacks a weight, or has it in another shape.
    """
    wanted = _weights_of(model)
    with torch.no_grad():
        for name, value in _stored(folder):
            target = wanted.pop(name, None)
            if target is None:
                continue
            if target.shape != value.shape:
                raise ConfigError(
                    f"{folder}: {name} is {list(value.shape)}; expected {list(target.shape)}. "
                    "Continue with the student that the run began with"
                )
            target.copy_(_sharded_as(target, value.to(target.dtype)))
    if wanted:
        raise ConfigError(
            f"{folder} lacks {len(wanted)} weights of the student, such as {min(wanted)}. Continue "
            "with the student that the run began with"
        )


def _weights_of(model: Any) -> dict[str, Tensor]:
    """Tensors of a model by their names in a checkpoint; they share the memory of the model."""
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        return dict(get_peft_model_state_dict(model, save_embedding_layers=False))
    persistent = {name for name, _ in model.named_parameters()}  # each of tied ones once
    return {name: value for name, value in model.state_dict().items() if name in persistent}


def _stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the weight files of a checkpoint, one at a time."""
    files = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if (folder / _INDEX).is_file():
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        files = [folder / name for name in sorted(set(index["weight_map"].values()))]
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                yield name, tensors.get_tensor(name)


def _gathered(value: Any, keep: bool) -> Any:
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.cpu() if keep and isinstance(whole, Tensor) else whole if keep else None


def _sharded_as(target: Tensor, value: Any) -> Any:
    """A whole tensor in the shards of another of its shape; anything else as it is."""
    if not isinstance(target, DTensor) or not isinstance(value, Tensor):
        return value
    if value.shape != target.shape:
        return value
    mesh = target.device_mesh
    # Each process has the whole and takes its part: nothing is sent.
    return distribute_tensor(
        value.to(mesh.device_type), mesh, target.placements, src_data_rank=None
    )
