"""``cachekd train`` without its command line: caches and a student in, a trained student out.

Everything that can be wrong is checked from small files first (`cachekd.training.inputs`); then the
student is loaded, trained and saved as a plain ``from_pretrained`` folder, with the record of the
run beside it.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from cachekd.config import TrainConfig, resolved
from cachekd.errors import WorkerError
from cachekd.signals import StopFlag, stop_on_signals
from cachekd.store.settings import using
from cachekd.training import outcome, record
from cachekd.training.bars import quiet_bars
from cachekd.training.build import Progress, samples_of_run, trainer_of
from cachekd.training.inputs import Inputs, checked, checkpoint_of

if TYPE_CHECKING:
    from cachekd.training.trainer import DistillTrainer


def train(config: TrainConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Train a student from caches.

    Args:
        config: see `TrainConfig`.
        progress: called with the step, the last step and a log row of the trainer, which is empty
            where a step is merely done.

    Returns:
        The record of the run, as in ``run.json``: see `cachekd.training.outcome.facts_of`, plus
        ``status``, ``steps``, ``train_loss``, ``history`` (log rows), ``throughput`` and
        ``final_eval`` (None where nothing is evaluated on).

    Raises:
        ConfigError: a setting is wrong, or the output folder holds another run.
        MismatchError: caches, student and objective do not belong together.
        Incomplete: a signal asked for an end; a checkpoint was saved.
        WorkerError: a worker of the data loader died.
        NonFiniteLoss: a step's loss or gradient is nan or infinite; no weight was changed by it.
    """
    with using(config):
        return _train(config, progress)


def _train(config: TrainConfig, progress: Progress | None) -> dict[str, Any]:
    inputs = checked(config)
    dataset = samples_of_run(inputs)
    if inputs.resume:
        _check_resumed(inputs, dataset.digest())
    stop = StopFlag()
    with redirect_stdout(sys.stderr), quiet_bars(own=progress is not None):
        trainer = trainer_of(inputs, dataset, stop, progress)
        facts = outcome.facts_of(inputs, dataset, trainer)
        if inputs.resume and not trainer.args.ignore_data_skip:
            record.check_step(inputs.output, facts)
        if trainer.is_world_process_zero():
            record.write_record(inputs.output, {**facts, "status": "running"})
        ended = _trained(inputs, trainer, stop)
        state = trainer.state
        facts |= {"steps": state.global_step, "train_loss": ended.training_loss}
        if stop.asked and state.global_step < state.max_steps:
            raise outcome.interrupted(inputs, trainer, facts)
        with stop_on_signals(stop, patience=None):  # all is trained; it is saved whole
            return outcome.finish(inputs, trainer, facts)


def _trained(inputs: Inputs, trainer: DistillTrainer, stop: StopFlag) -> Any:
    """What a Trainer gives of its run, which ends at the border of a step once the flag is set."""
    checkpoint = checkpoint_of(inputs)
    with stop_on_signals(stop, patience=None):  # a step and its checkpoint take their time
        try:
            return trainer.train(resume_from_checkpoint=checkpoint)
        except WorkerError as error:
            if not stop.soon():
                raise
            raise outcome.interrupted_with_workers(inputs) from error


def _check_resumed(inputs: Inputs, digest: str) -> None:
    rows = {
        "loss_mask": str(inputs.loss_mask),
        "max_length": inputs.max_length,
        "scores_id": inputs.live.teacher.scores_id if inputs.live else None,
    }
    record.check_resumed(inputs.output, digest, inputs.caches, resolved(inputs.config), rows)
