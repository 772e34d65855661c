"""A `DistillTrainer` whose batches the student writes itself.

In: prompts, what an objective asks of rollouts, a live teacher. Out: a Trainer; objective, loss,
evaluation and checkpoints are those of cached training, batches come from `Engine`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from cachekd.errors import ConfigError
from cachekd.objectives._rollouts import Rollouts
from cachekd.rollouts import Ask, Rollout, Scores, Written
from cachekd.rollouts.engine import Asked, Engine, Texts
from cachekd.rollouts.measures import rollout_means, summed
from cachekd.rollouts.responses import DrawSpec
from cachekd.rollouts.sampling import Mix, write
from cachekd.rollouts.state import load_engine, save_engine
from cachekd.rollouts.teacher import LiveTeacher
from cachekd.training.collate_rollouts import (
    RolloutCollator,
    part_weights,
    record_of,
    scale_parts,
)
from cachekd.training.gathered import check_gathering, gathered
from cachekd.training.plain_text import PlainText
from cachekd.training.prompts import Prompts, Visit, Visited
from cachekd.training.reading import ModelReader
from cachekd.training.texts import no_logits
from cachekd.training.trainer import DistillTrainer
from cachekd.training.visits import VisitSampler
from cachekd.types import Batch, Record

_SAY_SECONDS = 3.0
_HELD_OUT = ("eval_text_ce", "eval_ce", "eval_loss")


class OnPolicyTrainer(DistillTrainer):
    """Trains on text of the student, scored by a live teacher.

    Args:
        rollouts: what the objective asks.
        scores: the teacher behind its score cache.
        teacher: who it is.
        draw: how the student writes.
        mix: the teacher's share in what is drawn from, or None.
        batch_tokens: token budget of a batch in which the student is read.
        beside: text that is trained on beside the student's, in place of the data's responses.
        kept: is given all rollouts as they are made.
        progress: is told how many responses of a collection are written, while that takes long.
        **kwargs: of `DistillTrainer`; ``train_dataset`` are `Prompts`, ``data_collator`` is a
            `RolloutCollator`.

    Raises:
        ConfigError: DeepSpeed shards the student, or this torch cannot gather it, so that it
            cannot write.
    """

    def __init__(
        self,
        *,
        rollouts: Rollouts,
        scores: Scores,
        teacher: LiveTeacher,
        draw: DrawSpec,
        mix: Mix | None,
        batch_tokens: int,
        data_collator: RolloutCollator,
        beside: PlainText | None = None,
        kept: Callable[[Sequence[Rollout]], None] | None = None,
        progress: Callable[[int, int, Mapping[str, Any]], None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_collator=_as_they_are, **kwargs)
        if self.is_deepspeed_enabled:
            raise ConfigError(
                "the student writes its own text, which it cannot do while DeepSpeed has sharded "
                "it; train with FSDP2 (--fsdp true), or with plain data parallelism"
            )
        if self.is_fsdp_enabled:
            check_gathering()
        self.rollouts: Rollouts = rollouts
        self.collate: Any = data_collator
        self.scores, self.teacher, self.beside = scores, teacher, beside
        self._draw, self._mix = draw, mix
        self._progress, self._said = progress, time.monotonic()
        self.engine = Engine(
            rollouts,
            write=self._written,
            reader=ModelReader(
                self._student,
                self.train_dataset.vocab_size,
                batch_tokens,
                self.compute_loss_context_manager,
            ),
            scores=scores,
            seed=self.args.seed,
            reduce=self._sum,
            kept=kept,
        )

    # Order

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self.epoch_sampler: Any = VisitSampler(
            self.train_dataset,
            seed,
            self._train_batch_size,
            self.args.world_size,
            self.rollouts.collect,
            self.rollouts.inner_epochs,
        )
        return self.epoch_sampler

    # Batches

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Batch], Tensor | int | None]:
        """The batches of a step, written and scored."""
        made = map(self._made, epoch_iterator)
        batches, items = super().get_batch_samples(made, num_batches, device)
        if self.rollouts.gold != "none":  # alike in all processes, whoever wrote their batches
            sums = self._sum(part_weights(batches).numpy())
            scale_parts(batches, torch.from_numpy(sums))
        return batches, items

    def _made(self, visited: Sequence[Visited]) -> Batch:
        with self.meter.working(), self._whole_student():
            found = self.engine.batch(
                [self._asked(item.visit, item.record) for item in visited],
                (visited[0].visit.epoch, visited[0].visit.group, visited[0].visit.round),
                self.state.global_step / max(self.state.max_steps, 1),
                lambda: self._own(visited[0].visit),
            )
            batch: Batch = self.collate(self._records(visited, found))
            return batch

    def _whole_student(self) -> AbstractContextManager[None]:
        """Within, a process need not know how often the others run the student."""
        if not self.is_fsdp_enabled:
            return nullcontext()
        self._proven_head(self.model)
        again = bool(self.accelerator.state.fsdp_plugin.reshard_after_forward)
        return gathered(self.model, reshard_after_forward=again)

    def _asked(self, visit: Visit, record: Record) -> Asked:
        prompts: Prompts = self.train_dataset
        return Asked(
            sample=visit.sample,
            number=visit.epoch * len(prompts) + visit.sample,
            prompt=record.input_ids[: int(prompts.starts[visit.sample])],
        )

    def _own(self, visit: Visit) -> list[Asked]:
        """All prompts of a new collection that are this process's."""
        own = self.epoch_sampler.own(visit, self.args.process_index)
        visits = [visit._replace(sample=sample) for sample in dict.fromkeys(own)]
        items = self.train_dataset.__getitems__(visits)
        return [self._asked(item.visit, item.record) for item in items]

    def _records(self, visited: Sequence[Visited], found: Texts) -> list[Record]:
        """Records of the rollouts, and of the data where it is trained on."""
        weights = self.train_dataset.weights
        written = [
            record_of(rollout, float(weights[rollout.sample]))
            for rollout in found
            if rollout is not None
        ]
        if self.rollouts.gold != "none":
            beside = self.beside.records(visited) if self.beside else _data(visited)
            bare = self.rollouts.gold == "text"
            return written + ([self._bare(r) for r in beside] if bare else self._scored(beside))
        pairs = zip(visited, found, strict=True)
        return written + self._scored([item.record for item, own in pairs if own is None])

    def _bare(self, record: Record) -> Record:
        """A record without targets, with the temperatures of those beside it."""
        rows, temperatures = len(record.input_ids) - 1, self.objective.needs().temperatures
        logits = no_logits(rows, self.train_dataset.vocab_size, (1.0, *temperatures))
        return replace(record, logits=logits)

    def _scored(self, data: Sequence[Record]) -> list[Record]:
        """Records of the data with targets: those of the cache, or of the live teacher."""
        bare = [at for at, record in enumerate(data) if not len(record.logits.ids)]
        rows = {at: self.collate.rows(data[at]) for at in bare}
        asked = [at for at in bare if len(rows[at])]
        found = self.scores.score(
            [data[at].input_ids for at in asked], [int(rows[at][0]) for at in asked]
        )
        targets = dict(zip(asked, found, strict=True))
        return [
            replace(record, logits=targets[at]) if at in targets else record
            for at, record in enumerate(data)
        ]

    def _written(self, asks: Sequence[Ask]) -> list[Written]:
        with self.compute_loss_context_manager():
            return write(self._student(), asks, self._draw, self._mix, self._say)

    def _say(self, written: int) -> None:
        """Tell how far a collection is, at times: nothing else is seen of a run meanwhile."""
        late = time.monotonic() - self._said > _SAY_SECONDS
        if late and self._progress is not None and self.is_world_process_zero():
            self._said = time.monotonic()
            self._progress(self.state.global_step, self.state.max_steps, {"written": written})

    def _student(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    def _sum(self, values: Any) -> Any:
        """An array summed over all processes."""
        if self.args.world_size == 1:
            return values
        tensor = torch.as_tensor(values, dtype=torch.float64, device=self.args.device)
        return self.accelerator.reduce(tensor, "sum").cpu().numpy()

    # Evaluation, logs, checkpoints

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Figures of the evaluation; the schedule looks at the held-out loss."""
        figures = super().evaluate(*args, **kwargs)
        loss = next((figures[name] for name in _HELD_OUT if name in figures), None)
        if loss is not None:
            self.engine.schedule.evaluated(loss)
        return figures

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with what was written since the last log."""
        if "loss" in logs:
            logs.update(rollout_means(self._sum(self.engine.measures.taken())))
            if self.rollouts.share.kind == "adaptive":
                logs["phi"] = self.engine.schedule.phi
        super().log(logs, start_time)

    def rollout_figures(self) -> dict[str, Any] | None:
        """What was written and scored, and the seconds of the parts, over all processes."""
        own = dict(self.engine.figures())
        if self.args.world_size == 1:
            return own
        return summed(gather_object([own]))

    def _save_rng_state(self, output_dir: str) -> None:
        save_engine(self.engine, Path(output_dir), self.args.process_index, self.args.world_size)
        super()._save_rng_state(output_dir)

    def leave_group(self) -> None:
        """Close the score cache, and leave the process group in good order."""
        self.scores.close()
        super().leave_group()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            rank, processes = self.args.process_index, self.args.world_size
            load_engine(self.engine, Path(checkpoint), rank, processes)


def _data(visited: Sequence[Visited]) -> list[Record]:
    return [item.record for item in visited]


def _as_they_are(items: Any) -> Any:
    return list(items)
