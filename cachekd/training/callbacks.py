"""Callbacks of a run. In: the state of a `transformers.Trainer`. Out: its control flags."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers

from cachekd.signals import StopFlag
from cachekd.training.meter import Meter


class ProgressCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Tells a listener of every step and every log row, once for all processes."""

    def __init__(self, progress: Callable[[int, int, Mapping[str, Any]], None]) -> None:
        self._progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say where training begins."""
        self._step(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say that a step is done."""
        self._step(state)

    def _step(self, state: Any) -> None:
        if state.is_world_process_zero:
            self._progress(state.global_step, state.max_steps, {})

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


class EarlyStopping(transformers.EarlyStoppingCallback):  # type: ignore[misc]
    """Ends training when the watched figure has stopped falling.

    Where a cache and a text are evaluated in turn, the one without the figure says nothing.
    """

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **kwargs: Any
    ) -> None:
        """Look at the evaluation that holds the figure."""
        if "eval_" + args.metric_for_best_model.removeprefix("eval_") in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)


class MeterCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Starts and stops the clock of a run, and counts its steps."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start."""
        self._meter.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count."""
        self._meter.steps += 1

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop."""
        self._meter.end()
