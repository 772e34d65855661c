"""Callbacks of a run. In: the state of a `transformers.Trainer`. Out: its control flags."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers

from cachekd.signals import StopFlag


class ProgressCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Tells a listener of every log row, once for all processes."""

    def __init__(self, progress: Callable[[int, int, Mapping[str, Any]], None]) -> None:
        self._progress = progress

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **kwargs: Any
    ) -> None:
        """Pass the row on, with the step and the last step."""
        if state.is_world_process_zero:
            self._progress(state.global_step, state.max_steps, dict(logs))


class StopCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Ends training after the current step, with a checkpoint, once the flag is set anywhere."""

    def __init__(self, flag: StopFlag) -> None:
        self._flag = flag

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the flag of every process: all must stop at the same step."""
        if args.world_size > 1:
            asked = torch.tensor(int(self._flag.asked), device=args.device)
            torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
            self._flag.asked = bool(asked.item())
        if self._flag.asked:
            control.should_save = control.should_training_stop = True
