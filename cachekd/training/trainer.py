"""A `transformers.Trainer` that trains a student from a cache.

In: a student, an objective, a `CacheDataset`, a `Collator`. Out: what a Trainer gives, with two
things made exact: the loss of an optimiser step is the mean over all trained rows of the
accumulated batch of all processes, and evaluation is the mean over all rows of the evaluation set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor
from torch.utils.data import DataLoader

from cachekd.errors import ConfigError
from cachekd.objectives import build
from cachekd.training.attention import StudentAttention
from cachekd.training.base import RunTrainer
from cachekd.training.eval_text import TextDataset
from cachekd.training.finite import FiniteCallback
from cachekd.training.forward import check_packing
from cachekd.training.head import StudentHead
from cachekd.training.loss import batch_loss
from cachekd.training.order import EpochSampler

if TYPE_CHECKING:
    from cachekd.losses.attention import AttentionMapping
    from cachekd.objectives import Objective
    from cachekd.types import Batch, ObjectiveOutput

_TINY = 1e-12
_COUNT = "count of "


class DistillTrainer(RunTrainer):
    """Trains on cached targets; everything else is as in `transformers.Trainer`.

    Logged beside ``loss``: the metrics of the objective (``kl``, ``ce``, ``tail_mass``), as means
    over the rows since the last log. ``evaluate`` gives the same with the prefix ``eval_``. With
    several processes the last batches of an epoch are filled up with what trains nothing, so that a
    step of several processes is one of a process that has all their samples.

    Args:
        objective: what is minimised.
        data_collator: a `cachekd.training.collate.Collator`.
        packing_capacity: tokens of a packed row; None trains padded rows. Evaluation is padded.
        attention_mapping: what of the student's attention learns from what, for an objective that
            gives attention a weight (see `cachekd.training.attention_checks.check_attention`).
        **kwargs: arguments of `cachekd.training.base.RunTrainer` and `transformers.Trainer`.

    Raises:
        ConfigError: one process drives several devices.
        NonFiniteLoss: (of ``train``) a step's loss or gradient is nan or infinite.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        objective: Objective,
        data_collator: Callable[[Any], Batch],
        packing_capacity: int | None = None,
        attention_mapping: AttentionMapping | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(objective=objective, data_collator=data_collator, **kwargs)
        if self.args.n_gpu > 1:
            raise ConfigError(
                f"one process sees {self.args.n_gpu} devices; start one process for each with "
                "accelerate launch or torchrun, or set CUDA_VISIBLE_DEVICES"
            )
        self.packing_capacity = packing_capacity
        self.collate: Callable[[Any], Batch] = data_collator
        self.empty_batches = 0
        self._window: dict[str, Tensor] = {}
        self._evaluation: dict[str, Tensor] = {}
        self._evaluation_batches = 0
        self._packing_checked = False
        self._head: StudentHead | None = None
        self._attention: StudentAttention | None = None
        if attention_mapping is not None:
            self._attention = StudentAttention(self.model, attention_mapping)
        # For Trainers that do not know `loss_is_scaled_for_ga`: they ask this whether the loss is
        # already divided by the size of the accumulated batch.
        self.model_accepts_loss_kwargs = True
        self.add_callback(_FollowEpoch(self))
        self.finite = FiniteCallback(self.accelerator)
        self.add_callback(self.finite)

    # Loss

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Share of this batch in the mean over the accumulated global batch."""
        if inputs["attention_mask"] is None and not self._packing_checked:
            vocab_size = self.train_dataset.vocab_size
            rows = min(2, len(inputs["input_ids"]))
            check_packing(model, vocab_size, inputs["input_ids"].device, rows)
            self._packing_checked = True
        output = self._objective_output(model, inputs, self.train_dataset)
        self.empty_batches += not len(inputs["rows"])
        _add(self._window, output)
        self.finite.add({"loss": output.loss_sum, **output.metrics})
        total = output.weight_sum if num_items_in_batch is None else num_items_in_batch
        loss = output.loss_sum / torch.as_tensor(total).clamp(min=_TINY)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # The denominator is that of all processes, and gradients are averaged over them.
            loss = loss * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None:  # DeepSpeed may not know it
            self.finite.add_gradient(norm)
        return norm

    def _objective_output(self, model: Any, batch: Batch, dataset: Any) -> ObjectiveOutput:
        head = self._proven_head(model)
        if isinstance(dataset, TextDataset):
            return batch_loss(model, head, batch, build("sft", {}), dataset.vocab_size)
        return batch_loss(model, head, batch, self.objective, dataset.vocab_size, self._attention)

    def _proven_head(self, model: Any) -> StudentHead:
        """The student's head; to prove it the first time is a forward of the student."""
        if self._head is None:
            self._head = StudentHead(model, self.accelerator.unwrap_model(model))
        return self._head

    def _held_out(self, model: Any, batch: Batch, dataset: Any) -> ObjectiveOutput:
        """The objective's sums, and ``kl``, ``ce`` and ``tail_mass`` whatever the objective is.

        So students of different objectives can be compared: forward KL to the stored teacher at
        temperature 1. An objective that is forward KL itself tells it at its own temperature.
        """
        output = self._objective_output(model, batch, dataset)
        if isinstance(dataset, TextDataset) or getattr(self.objective, "metric", "") == "kl":
            return output
        measure = build("kd", {"loss": {"kd": 1.0}})
        common = batch_loss(model, self._proven_head(model), batch, measure, dataset.vocab_size)
        return replace(output, metrics={**output.metrics, **common.metrics})

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: Any) -> Tensor | None:
        """Row weights of the accumulated batch, over all processes."""
        weights = [batch["targets"]["weights"].to(device).sum() for batch in batch_samples]
        total = torch.stack(weights).sum() if weights else torch.zeros((), device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        return total

    # Data

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        dataset = self.train_dataset if train_dataset is None else train_dataset
        self.epoch_sampler = EpochSampler(dataset, seed, self.packing_capacity, self._multiple())
        return self.epoch_sampler

    def _multiple(self) -> int:
        """Places that the batches of all processes hold, of which none may lack any."""
        if self.args.world_size == 1 or self.args.dataloader_drop_last:
            return 1
        size = int(self._train_batch_size)
        return size if self.accelerator.split_batches else size * int(self.args.world_size)

    def _get_collator_with_removed_columns(
        self, data_collator: Callable[[Any], Batch], description: str | None = None
    ) -> Callable[[Any], Batch]:
        return data_collator  # no part of a Batch is unused, whatever the model's forward takes

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Batches of this process, each sample in exactly one process."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]
        if dataset is None:
            raise ConfigError("evaluation: expected an eval_cache or eval_data; found none")
        size, world = self.args.eval_batch_size, self.args.world_size
        starts = range(0, len(dataset), size)
        batches = [list(range(at, min(at + size, len(dataset)))) for at in starts]
        own = batches[self.args.process_index :: world]
        self._evaluation_batches = len(own)
        # Sharded models run in step: a process without a batch left repeats one, uncounted.
        own += batches[:1] * (math.ceil(len(batches) / world) - len(own))
        workers = self.args.dataloader_num_workers
        collate = dataset.collate if isinstance(dataset, TextDataset) else self.collate
        return DataLoader(dataset, batch_sampler=own, collate_fn=collate, num_workers=workers)

    # Evaluation and logs

    def evaluation_loop(self, dataloader: DataLoader[Any], *args: Any, **kwargs: Any) -> Any:
        """The loop of Trainer, with means over rows in place of means over batches."""
        self._evaluation = {}
        result = super().evaluation_loop(dataloader, *args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        means = self._means(self._evaluation)
        result.metrics.update({f"{prefix}_{name}": value for name, value in means.items()})
        return result

    def prediction_step(
        self,
        model: Any,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, None, None]:
        """Add the sums of a batch; nothing is gathered."""
        batch = self._prepare_inputs(inputs)
        dataset = self.callback_handler.eval_dataloader.dataset
        with torch.no_grad(), self.compute_loss_context_manager():
            output = self._held_out(model, batch, dataset)
        # A batch that is repeated counts 0, so that every process has the same sums to reduce.
        _add(self._evaluation, output, factor=float(self._evaluation_batches > 0))
        self._evaluation_batches -= 1
        return None, None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means since the last log where the training loss is logged."""
        if "loss" in logs and self._window:
            means = self._means(self._window)
            logs.update({name: value for name, value in means.items() if name != "loss"})
            self._window = {}
        super().log(logs, start_time)

    def rollout_figures(self) -> dict[str, Any] | None:
        """Figures of text that the student wrote; None where it wrote none."""
        return None

    def leave_group(self) -> None:
        """Leave the process group in good order; a process that only exits may be aborted.

        So may one that exits with a wrapped model, whose reducer has threads in the group.
        """
        if self.args.world_size > 1:
            self.accelerator.wait_for_everyone()
            self.model_wrapped = self.model
            self.accelerator.free_memory()
            self.accelerator.end_training()

    def _means(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over the rows of all processes."""
        if not sums:
            sums = {"weight": torch.zeros((), device=self.args.device)}
        totals = torch.stack([value.double() for value in sums.values()])
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals, "sum")
        values = dict(zip(sums, totals.tolist(), strict=True))
        weight = values.pop("weight")
        counts = {name: values.pop(name) for name in list(values) if name.startswith(_COUNT)}
        weights = {name: counts.get(_COUNT + name, weight) for name in values}
        return {name: values[name] / weights[name] for name in values if weights[name] > 0}


class _FollowEpoch(transformers.TrainerCallback):  # type: ignore[misc]
    """Tells the sampler the epoch: accelerate does not when several processes resume within one."""

    def __init__(self, trainer: DistillTrainer) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.epoch_sampler.set_epoch(int(state.epoch or 0))


def _add(sums: dict[str, Tensor], output: ObjectiveOutput, factor: float = 1.0) -> None:
    """Add the sums of a batch, detached and on their device, so that nothing waits for them."""
    counts = {_COUNT + name: value for name, value in output.counts.items()}
    parts = {"loss": output.loss_sum, "weight": output.weight_sum, **output.metrics, **counts}
    for name, value in parts.items():
        value = factor * value.detach().double()
        sums[name] = sums[name] + value if name in sums else value
