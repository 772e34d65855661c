"""``cachekd train`` without its command line: caches and a student in, a trained student out.

Everything that can be wrong is checked from small files first; then the student is loaded, trained
and saved as a plain ``from_pretrained`` folder, with the record of the run beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachekd.config import TrainConfig, resolved
from cachekd.data.alignment import LossMask
from cachekd.data.models import resolve_model
from cachekd.errors import ConfigError
from cachekd.objectives import Needs, Objective, build
from cachekd.signals import StopFlag, stop_on_signals
from cachekd.store.reader import Cache, open_cache
from cachekd.training import (
    attention_checks,
    caveats,
    checkpoints,
    checks,
    outcome,
    record,
    student,
)
from cachekd.training.arguments import resume_of, training_arguments
from cachekd.training.options import dataset_options

if TYPE_CHECKING:
    from cachekd.losses.attention import AttentionMapping
    from cachekd.training.eval_text import TextDataset
    from cachekd.training.loader import CacheDataset
    from cachekd.training.trainer import DistillTrainer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """What a run is made of, checked."""

    config: TrainConfig
    objective: Objective
    student: Path
    output: Path
    caches: list[Cache]
    eval_cache: Cache | None
    loss_mask: LossMask
    attention_mapping: AttentionMapping | None
    max_length: int | None
    resume: str | bool


Progress = Callable[[int, int, Mapping[str, Any]], None]


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
        Incomplete: SIGINT or SIGTERM came; a checkpoint was saved.
    """
    inputs = _checked(config)
    from cachekd.training.loader import CacheDataset

    dataset = CacheDataset(
        inputs.caches,
        loss_mask=inputs.loss_mask,
        max_length=inputs.max_length,
        **dataset_options(config, inputs.objective.needs(), inputs.caches, inputs.student),
    )
    caveats.warn_of_samples(inputs.objective.needs(), dataset)
    if inputs.resume:
        rows = {"loss_mask": str(inputs.loss_mask), "max_length": inputs.max_length}
        now = resolved(config)
        record.check_resumed(inputs.output, dataset.digest(), inputs.caches, now, rows)
    with redirect_stdout(sys.stderr), _bars(own=progress is not None), stop_on_signals() as stop:
        trainer = _trainer(inputs, dataset, stop, progress)
        facts = outcome.facts_of(inputs, dataset, trainer)
        if trainer.is_world_process_zero():
            record.write_record(inputs.output, {**facts, "status": "running"})
        ended = trainer.train(resume_from_checkpoint=_checkpoint(inputs))
        state = trainer.state
        facts |= {"steps": state.global_step, "train_loss": ended.training_loss}
        if stop.asked and state.global_step < state.max_steps:
            raise outcome.interrupted(inputs, trainer, facts)
        return outcome.finish(inputs, trainer, facts)


@contextmanager
def _bars(*, own: bool) -> Iterator[None]:
    """Within, transformers shows no bars for loading and saving if the caller has its own."""
    from transformers.utils import logging

    if not own or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def loss_mask_of(config: TrainConfig) -> LossMask:
    """The loss mask that two flags ask for."""
    if config.assistant_only_loss:
        return LossMask.ASSISTANT
    if config.completion_only_loss is None:
        return LossMask.AUTO
    return LossMask.COMPLETION if config.completion_only_loss else LossMask.ALL


def _checked(config: TrainConfig) -> Inputs:
    objective = build(config.objective, config.objective_options)
    needs, loss_mask = objective.needs(), loss_mask_of(config)
    caches = [_open(text, config, needs) for text in config.cache]
    checks.check_names(caches)
    eval_cache = _open(config.eval_cache, config, needs) if config.eval_cache else None
    everything = caches + ([eval_cache] if eval_cache else [])
    checks.check_one_tokenizer(everything)
    checks.check_needs(needs, everything, mixture=bool(config.mixture))
    folder = resolve_model(config.student, config.revision)
    student.refuse_adapter(folder)
    checks.check_student(folder, everything)
    checks.check_written(needs, caches)
    caveats.warn_of_coarse_start(needs, caches)
    caveats.warn_of_short_heads(needs, caches)
    checks.check_start(needs, caches, folder)
    mapping = attention_checks.check_attention(needs, everything, folder, loss_mask)
    max_length = checks.resolve_max_length(config.max_length, folder)
    if config.packing and max_length is None:
        raise ConfigError("packing: the student does not say its context; set max_length")
    resume, output = resume_of(config.training), Path(config.output_dir)
    record.check_output(output, folder, resume=bool(resume))
    return Inputs(
        config=config,
        objective=objective,
        student=folder,
        output=output,
        caches=caches,
        eval_cache=eval_cache,
        loss_mask=loss_mask,
        attention_mapping=mapping,
        max_length=max_length,
        resume=resume,
    )


def _open(text: str, config: TrainConfig, needs: Needs) -> Cache:
    """The cache of ``NAME=PATH``; attention is decoded only for an objective that takes it."""
    name, location = checks.parse_cache(text)
    return open_cache(location, partial=config.partial, name=name, attention=needs.attention > 0)


def _checkpoint(inputs: Inputs) -> str | None:
    """Checkpoint to continue from; None where the run has none yet."""
    if not inputs.resume:
        return None
    if inputs.config.training.get("save_only_model"):
        raise ConfigError(
            "resume_from_checkpoint: checkpoints of save_only_model hold no optimizer and cannot "
            "be continued from; train without it"
        )
    if isinstance(inputs.resume, str):
        checkpoints.check_whole(Path(inputs.resume))
        return inputs.resume
    found = checkpoints.last_whole(inputs.output)
    return None if found is None else str(found)


def _trainer(
    inputs: Inputs, dataset: CacheDataset, stop: StopFlag, progress: Progress | None
) -> DistillTrainer:
    from transformers import AutoTokenizer, PrinterCallback

    from cachekd.training.collate import Collator
    from cachekd.training.spans import span_finder
    from cachekd.training.trainer import DistillTrainer

    config = inputs.config
    arguments = training_arguments(config, own_progress=progress is not None)
    tokenizer = AutoTokenizer.from_pretrained(
        inputs.student, trust_remote_code=config.trust_remote_code
    )
    held_out, text = _evaluation(inputs, tokenizer)
    trainer = DistillTrainer(
        model=student.load_student(config, inputs.student, arguments),
        args=arguments,
        objective=inputs.objective,
        objective_learning_rate=config.objective_learning_rate,
        train_dataset=dataset,
        eval_dataset=text if held_out is None else held_out,
        eval_text=None if held_out is None else text,
        data_collator=Collator(
            inputs.loss_mask,
            pad_token_id=tokenizer.pad_token_id or 0,
            unigram=dataset.unigram() if inputs.objective.needs().unigram else None,
            reduction=config.reduction,
            attention=inputs.attention_mapping is not None,
            spans=span_finder(tokenizer, inputs.objective.needs().spans),
        ),
        attention_mapping=inputs.attention_mapping,
        packing_capacity=inputs.max_length if config.packing else None,
        processing_class=tokenizer,
        callbacks=_callbacks(config, stop, progress),
    )
    if progress is not None:
        trainer.remove_callback(PrinterCallback)  # its lines would stand between those of progress
    return trainer


def _evaluation(inputs: Inputs, tokenizer: Any) -> tuple[CacheDataset | None, TextDataset | None]:
    """What is evaluated on: a cache, a text, both or nothing."""
    from cachekd.training.eval_text import TextDataset
    from cachekd.training.loader import CacheDataset

    held_out = text = None
    if inputs.eval_cache is not None:
        held_out = CacheDataset(
            inputs.eval_cache, loss_mask=inputs.loss_mask, max_length=inputs.max_length
        )
    if inputs.config.eval_data:
        text = TextDataset(
            inputs.config.eval_data,
            inputs.caches[0].identity,
            tokenizer,
            loss_mask=inputs.loss_mask,
            max_length=inputs.max_length,
            pad_token_id=tokenizer.pad_token_id or 0,
            reduction=inputs.config.reduction,
        )
    return held_out, text


def _callbacks(config: TrainConfig, stop: StopFlag, progress: Progress | None) -> list[Any]:
    from cachekd.training.callbacks import EarlyStopping, ProgressCallback, StopCallback

    callbacks: list[Any] = [StopCallback(stop)]
    if config.early_stopping_patience is not None:
        callbacks.append(
            EarlyStopping(config.early_stopping_patience, config.early_stopping_threshold)
        )
    if progress is not None:
        callbacks.append(ProgressCallback(progress))
    return callbacks
