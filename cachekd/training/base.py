"""What a run adds to `transformers.Trainer` beside its loss.

Sound checkpoints, the parameters of an objective, held-out text, and what the run used.

In: an objective and the arguments of a Trainer. Out: a Trainer that `cachekd.training.trainer`
gives its loss and its order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cachekd.errors import ConfigError
from cachekd.training import learned
from cachekd.training.callbacks import MeterCallback
from cachekd.training.checkpoints import STATE
from cachekd.training.meter import Meter
from cachekd.training.sharded import ShardedTrainer
from cachekd.training.workers import named_workers

if TYPE_CHECKING:
    from cachekd.objectives import Objective
    from cachekd.training.eval_text import TextDataset
    from cachekd.types import Batch


class RunTrainer(ShardedTrainer):
    """Saves and restores all that a run is made of.

    Args:
        objective: what is minimised.
        objective_learning_rate: learning rate of the parameters that the objective learns.
        eval_text: held-out text, evaluated beside the evaluation set under ``eval_text_``.
        **kwargs: arguments of `transformers.Trainer`.

    Raises:
        ConfigError: the objective learns parameters, and DeepSpeed or checkpoints that are written
            shard by shard have no place for them.
    """

    def __init__(
        self,
        *,
        objective: Objective,
        objective_learning_rate: float = 1e-3,
        eval_text: TextDataset | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.objective = objective
        self.objective_learning_rate = objective_learning_rate
        self.eval_text = eval_text
        self.meter = Meter()
        self.add_callback(MeterCallback(self.meter))
        vocab_size = getattr(self.train_dataset, "vocab_size", 0)
        self.learned = objective.learned(vocab_size)
        if self.learned is not None:
            if self.is_deepspeed_enabled or self.keeps_shards:
                raise ConfigError(
                    "the objective learns parameters of its own, which are whole in every process: "
                    "DeepSpeed, and FSDP with state_dict_type SHARDED_STATE_DICT, have no place "
                    "for them. Train with FULL_STATE_DICT, or with plain data parallelism"
                )
            self.learned.to(self.args.device)
            self.add_callback(learned.LearnedCallback(self.learned))

    # What the objective learns

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The scheduler of Trainer; its optimizer gets a group for what the objective learns.

        Not before: to shard a model is to replace all parameters of its optimizer.
        """
        if self.learned is not None:
            chosen = self.optimizer if optimizer is None else optimizer
            learned.add_group(chosen, self.learned, self.objective_learning_rate)
        return super().create_scheduler(num_training_steps, optimizer)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.learned is not None and self.args.should_save:
            learned.save(self.learned, Path(output_dir or self.args.output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.learned is not None and checkpoint is not None:
            learned.restore(self.learned, Path(checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.learned is not None:
            learned.restore(self.learned, Path(self.state.best_model_checkpoint))

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save; while files are written the folder does not count as a checkpoint."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            (folder / STATE).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The first process now ends the checkpoint, so the files of all must be there.
        self.accelerator.wait_for_everyone()

    def _run_epoch(self, **kwargs: Any) -> None:
        """An epoch, unless the run ended already: a checkpoint of its last step trains no more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        try:
            return bool(super()._determine_best_metric(metrics, trial))
        except KeyError as error:
            known = ", ".join(sorted(name for name in metrics if name.startswith("eval_")))
            raise ConfigError(
                f"metric_for_best_model: {self.args.metric_for_best_model} is not among the "
                f"figures of the evaluation: {known}"
            ) from error

    # Training, evaluation and measures

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in Trainer; a loader worker that dies is named (`WorkerError`)."""
        with named_workers():
            return super().train(*args, **kwargs)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Figures of the evaluation set, and of the held-out text where there is one."""
        with self.meter.paused(), named_workers():
            figures: dict[str, float] = super().evaluate(
                eval_dataset, ignore_keys, metric_key_prefix
            )
            if eval_dataset is None and self.eval_text is not None:
                prefix = f"{metric_key_prefix}_text"
                figures |= super().evaluate(self.eval_text, ignore_keys, prefix)
        return figures

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: Any
    ) -> tuple[list[Batch], Tensor | int | None]:
        """The next batches, with the time that they are waited for."""
        found: tuple[list[Batch], Tensor | int | None] = super().get_batch_samples(
            self.meter.timed(epoch_iterator), num_batches, device
        )
        return found

    def total(self, count: int) -> int:
        """Sum of a count over all processes; every process must call."""
        if self.args.world_size == 1:
            return count
        own = torch.tensor(count, device=self.args.device)
        return int(self.accelerator.reduce(own, "sum").item())
