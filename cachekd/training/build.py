"""The Trainer of a run, made of its checked inputs.

In: `Inputs` and what is trained on. Out: a `DistillTrainer`, with its evaluation and callbacks; of
an on-policy run an `OnPolicyTrainer`, whose teacher is loaded here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cachekd.config import TrainConfig
from cachekd.signals import StopFlag
from cachekd.training import caveats, live_parts, student
from cachekd.training.arguments import training_arguments
from cachekd.training.inputs import Inputs
from cachekd.training.options import dataset_options

if TYPE_CHECKING:
    from cachekd.training.eval_text import TextDataset
    from cachekd.training.loader import CacheDataset
    from cachekd.training.prompts import Prompts
    from cachekd.training.trainer import DistillTrainer

Progress = Callable[[int, int, Mapping[str, Any]], None]


def samples_of_run(inputs: Inputs) -> CacheDataset | Prompts:
    """What is trained on: samples of caches, or the prompts of an on-policy run."""
    from cachekd.training.loader import CacheDataset

    config, needs = inputs.config, inputs.objective.needs()
    if inputs.live is not None and not inputs.caches:
        return live_parts.prompts_of(inputs, tokenizer_of(inputs), {})
    options = dataset_options(config, needs, inputs.caches, inputs.student)
    if inputs.live is not None:
        return live_parts.prompts_of(inputs, tokenizer_of(inputs), options)
    dataset = CacheDataset(
        inputs.caches, loss_mask=inputs.loss_mask, max_length=inputs.max_length, **options
    )
    caveats.warn_of_samples(needs, dataset)
    return dataset


def tokenizer_of(inputs: Inputs) -> Any:
    """The student's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        inputs.student, trust_remote_code=inputs.config.trust_remote_code
    )


def trainer_of(
    inputs: Inputs, dataset: CacheDataset | Prompts, stop: StopFlag, progress: Progress | None
) -> DistillTrainer:
    """The Trainer of a run."""
    from transformers import PrinterCallback

    from cachekd.training.loader import CacheDataset
    from cachekd.training.trainer import DistillTrainer

    config = inputs.config
    arguments = training_arguments(config, own_progress=progress is not None)
    tokenizer = tokenizer_of(inputs)
    held_out, text = _evaluation(inputs, tokenizer)
    kind: Any = DistillTrainer
    parts: dict[str, Any]
    if isinstance(dataset, CacheDataset):
        parts = _cached_parts(inputs, dataset, tokenizer)
    else:
        from cachekd.training.on_policy import OnPolicyTrainer

        kind = OnPolicyTrainer
        parts = live_parts.on_policy_parts(inputs, tokenizer, dataset, arguments)
        parts["progress"] = progress
    trainer: DistillTrainer = kind(
        model=student.load_student(config, inputs.student, arguments),
        args=arguments,
        objective=inputs.objective,
        objective_learning_rate=config.objective_learning_rate,
        train_dataset=dataset,
        eval_dataset=text if held_out is None else held_out,
        eval_text=None if held_out is None else text,
        processing_class=tokenizer,
        callbacks=_callbacks(config, stop, progress),
        **parts,
    )
    if progress is not None:
        trainer.remove_callback(PrinterCallback)  # its lines would stand between those of progress
    return trainer


def _cached_parts(inputs: Inputs, dataset: CacheDataset, tokenizer: Any) -> dict[str, Any]:
    """What a run from caches gives its Trainer."""
    from cachekd.training.collate import Collator
    from cachekd.training.spans import span_finder

    needs, config = inputs.objective.needs(), inputs.config
    return {
        "data_collator": Collator(
            inputs.loss_mask,
            pad_token_id=tokenizer.pad_token_id or 0,
            unigram=dataset.unigram() if needs.unigram else None,
            reduction=config.reduction,
            attention=inputs.attention_mapping is not None,
            spans=span_finder(tokenizer, needs.spans),
        ),
        "attention_mapping": inputs.attention_mapping,
        "packing_capacity": inputs.max_length if config.packing else None,
    }


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
            live_parts.wording_of(inputs),
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
