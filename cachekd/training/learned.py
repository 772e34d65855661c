"""Parameters that an objective learns beside the student: optimised, saved and restored with it.

In: the module of `cachekd.objectives.Objective.learned`. Out: a parameter group of the optimizer
without weight decay, ``objective.safetensors`` beside every saved student, and with several
processes equal parameters and averaged gradients.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cachekd.errors import ConfigError

FILE = "objective.safetensors"


def add_group(optimizer: Any, module: nn.Module, learning_rate: float) -> None:
    """Give the parameters a group of their own, without weight decay; once."""
    known = {id(value) for group in optimizer.param_groups for value in group["params"]}
    wanted = [v for v in module.parameters() if v.requires_grad and id(v) not in known]
    if not wanted:
        return
    optimizer.add_param_group({"params": wanted, "lr": learning_rate, "weight_decay": 0.0})


def save(module: nn.Module, folder: Path) -> None:
    """Write the parameters and buffers beside a student."""
    state = {name: value.detach().cpu().clone() for name, value in _state(module).items()}
    save_file(state, folder / FILE)


def restore(module: nn.Module, folder: Path) -> None:
    """Read them back, in place.

    Raises:
        ConfigError: the file is missing, cannot be read, or is of another objective.
    """
    path = folder / FILE
    wanted = _state(module)
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); it holds what the objective has learned. Name a "
            "checkpoint that has one, or begin the run anew in another folder"
        ) from error
    left, right = ({n: tuple(v.shape) for n, v in part.items()} for part in (found, wanted))
    if left != right:
        raise ConfigError(
            f"{path} is of another objective: expected {_show(right)}; found {_show(left)}. "
            "Continue with the objective and options that the run began with"
        )
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(found[name])


def start_equal(module: nn.Module) -> None:
    """Give every process the parameters of the first."""
    for value in _state(module).values():
        torch.distributed.broadcast(value, src=0)


def average_gradients(module: nn.Module, processes: int) -> None:
    """Average the gradients over all processes, as is done with the student's."""
    for value in module.parameters():
        if value.requires_grad:
            grad = torch.zeros_like(value) if value.grad is None else value.grad
            torch.distributed.all_reduce(grad)
            value.grad = grad / processes


def _state(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict())


def _show(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items())) or "nothing"


class LearnedCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Does for the module what the Trainer does for its model alone."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin alike everywhere."""
        self._module.zero_grad()
        if args.world_size > 1:
            start_equal(self._module)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Average what the processes found."""
        if args.world_size > 1:
            average_gradients(self._module, args.world_size)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget the gradients of the step that was taken."""
        self._module.zero_grad()
