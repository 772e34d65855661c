"""The sides that are compared: one student, one order of documents, one set of training arguments.

In: a `Job` whose documents are captured. Out: the Trainer of a side. The cached side is what
``cachekd train`` makes of these settings; the others take its documents in its order, without
targets, from memory, so that nothing but the teacher and the cache tells a step of one side from a
step of another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import Dataset

from cachekd.config import TrainConfig, precompute_config
from cachekd.costs.comparison.jobs import Job
from cachekd.costs.comparison.live_step import LiveTrainer
from cachekd.objectives import build
from cachekd.plugins import find
from cachekd.signals import StopFlag
from cachekd.training import student
from cachekd.training.arguments import training_arguments
from cachekd.training.build import samples_of_run, tokenizer_of, trainer_of
from cachekd.training.eval_text import TextCollator
from cachekd.training.inputs import Inputs, checked
from cachekd.training.loader import CacheDataset
from cachekd.training.texts import no_logits
from cachekd.training.trainer import DistillTrainer
from cachekd.types import Record


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Side:
    """A Trainer, and the tokens of an epoch of the sample."""

    trainer: DistillTrainer
    tokens: int


def train_config(job: Job) -> TrainConfig:
    """Settings of the cached side; those of the others follow from them."""
    config = job.config
    return TrainConfig(
        cache=(str(job.cache),),
        student=config.student,
        output_dir=str(job.folder / job.side),
        objective=config.objective,
        objective_options=config.objective_options,
        dtype=config.student_dtype,
        trust_remote_code=config.trust_remote_code,
        lora_r=config.lora_r,
        training={
            **config.training,
            "max_steps": config.discard + config.steps,
            "save_strategy": "no",
            "seed": config.seed,
        },
    )


def side_of(job: Job) -> Side:
    """The side that a job names.

    Raises:
        CachekdError: whatever ``cachekd train`` would refuse.
        MemoryError: a model does not fit.
    """
    inputs = checked(train_config(job))
    dataset: Any = samples_of_run(inputs)
    tokens = int(dataset.lengths.sum())
    if job.side == "cached":
        trainer = trainer_of(inputs, dataset, StopFlag(), _silent)
    else:
        trainer = _on_tokens(job, inputs, TokenRows(dataset))
    return Side(trainer=trainer, tokens=tokens)


def _on_tokens(job: Job, inputs: Inputs, rows: TokenRows) -> DistillTrainer:
    """A trainer on documents without targets."""
    from transformers import PrinterCallback

    tokenizer = tokenizer_of(inputs)
    arguments = training_arguments(inputs.config, own_progress=True)
    common = {
        "model": student.load_student(inputs.config, inputs.student, arguments),
        "args": arguments,
        "train_dataset": rows,
        "processing_class": tokenizer,
        "data_collator": TextCollator(inputs.loss_mask, pad_token_id=tokenizer.pad_token_id or 0),
    }
    trainer = (
        LiveTrainer(teacher=_teacher(job), **common)
        if job.side == "live"
        else DistillTrainer(objective=build("sft", {}), **common)
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _teacher(job: Job) -> Any:
    """The teacher's model, as a capture loads it."""
    settings = precompute_config(job.config)
    backend = find("teachers", settings.backend)
    import torch

    threads = settings.threads or torch.get_num_threads()
    return backend.load(settings, backend.identify(settings), threads).model


class TokenRows(Dataset[Record]):
    """The samples of a cache without their targets, in memory; ordered as the cache orders them.

    Args:
        cached: the samples.
    """

    def __init__(self, cached: CacheDataset) -> None:
        self.order, self.vocab_size = cached.order, cached.vocab_size
        self._identities = cached.identities()
        self._records = [self._bare(cached.record(i)) for i in range(len(cached))]

    def identities(self) -> Any:
        """See `CacheDataset.identities`."""
        return self._identities

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    def _bare(self, record: Record) -> Record:
        return replace(record, logits=no_logits(len(record.input_ids) - 1, self.vocab_size))


def _silent(step: int, last: int, row: Any) -> None:
    """Progress is told by the benchmark."""
