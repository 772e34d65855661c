"""``cachekd train`` without its command line: caches and a student in, a trained student out.

Everything that can be wrong is checked from small files first; then the student is loaded, trained
and saved as a plain ``from_pretrained`` folder, with the record of the run beside it.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachekd.config import TrainConfig, resolved
from cachekd.data.alignment import LossMask
from cachekd.data.models import resolve_model
from cachekd.errors import ConfigError, Incomplete
from cachekd.objectives import Objective, build, unknown
from cachekd.signals import StopFlag, stop_on_signals
from cachekd.store.reader import Cache, open_cache
from cachekd.training import caveats, checks, record

if TYPE_CHECKING:
    from cachekd.training.loader import CacheDataset
    from cachekd.training.trainer import DistillTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Inputs:
    """What a run is made of, checked."""

    config: TrainConfig
    objective: Objective
    student: Path
    output: Path
    caches: list[Cache]
    eval_cache: Cache | None
    loss_mask: LossMask
    max_length: int | None
    resume: str | bool


Progress = Callable[[int, int, Mapping[str, Any]], None]


def train(config: TrainConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Train a student from caches.

    Args:
        config: see `TrainConfig`.
        progress: called with the step, the last step and each log row of the trainer.

    Returns:
        The record of the run, as in ``run.json``; see `_facts`, plus ``status``, ``steps``,
        ``train_loss``, ``history`` (log rows) and ``final_eval`` (None without an eval cache).

    Raises:
        ConfigError: a setting is wrong, or the output folder holds another run.
        MismatchError: caches, student and objective do not belong together.
        Incomplete: SIGINT or SIGTERM came; a checkpoint was saved.
    """
    inputs = _checked(config)
    from cachekd.training.loader import CacheDataset

    dataset = CacheDataset(inputs.caches, loss_mask=inputs.loss_mask, max_length=inputs.max_length)
    if inputs.resume:
        record.check_resumed(inputs.output, dataset.digest(), inputs.caches, resolved(config))
    with redirect_stdout(sys.stderr), stop_on_signals() as stop:
        trainer = _trainer(inputs, dataset, stop, progress)
        facts = _facts(inputs, dataset, trainer)
        if trainer.is_world_process_zero():
            record.write_record(inputs.output, {**facts, "status": "running"})
        outcome = trainer.train(resume_from_checkpoint=_checkpoint(inputs))
        state = trainer.state
        facts |= {"steps": state.global_step, "train_loss": outcome.training_loss}
        if stop.asked and state.global_step < state.max_steps:
            raise _interrupted(inputs, trainer, facts)
        return _finish(inputs, trainer, facts)


def loss_mask_of(config: TrainConfig) -> LossMask:
    """The loss mask that two flags ask for."""
    if config.assistant_only_loss:
        return LossMask.ASSISTANT
    if config.completion_only_loss is None:
        return LossMask.AUTO
    return LossMask.COMPLETION if config.completion_only_loss else LossMask.ALL


def _checked(config: TrainConfig) -> _Inputs:
    objective = build(config.objective, config.objective_options)
    caches = []
    for text in config.cache:
        name, location = checks.parse_cache(text)
        caches.append(open_cache(location, partial=config.partial, name=name, attention=False))
    checks.check_names(caches)
    eval_cache = None
    if config.eval_cache is not None:
        name, location = checks.parse_cache(config.eval_cache)
        eval_cache = open_cache(location, partial=config.partial, name=name, attention=False)
    everything = caches + ([eval_cache] if eval_cache else [])
    checks.check_one_tokenizer(everything)
    checks.check_needs(objective.needs(), everything)
    student = resolve_model(config.student, config.revision)
    checks.check_student(student, everything)
    caveats.warn_of_coarse_start(objective.needs(), caches)
    max_length = checks.resolve_max_length(config.max_length, student)
    if config.packing and max_length is None:
        raise ConfigError("packing: the student does not say its context; set max_length")
    resume, output = _resume(config.training), Path(config.output_dir)
    record.check_output(output, student, resume=bool(resume))
    return _Inputs(
        config=config,
        objective=objective,
        student=student,
        output=output,
        caches=caches,
        eval_cache=eval_cache,
        loss_mask=loss_mask_of(config),
        max_length=max_length,
        resume=resume,
    )


def _resume(training: Mapping[str, Any]) -> str | bool:
    value = training.get("resume_from_checkpoint")
    if value is None or isinstance(value, bool):
        return bool(value)
    if str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    if not Path(value).is_dir():
        raise ConfigError(f"resume_from_checkpoint: there is no folder {value}")
    return str(value)


def _checkpoint(inputs: _Inputs) -> str | None:
    """Checkpoint to continue from; None where the run has none yet."""
    from transformers.trainer_utils import get_last_checkpoint

    if not inputs.resume:
        return None
    if isinstance(inputs.resume, str):
        return inputs.resume
    found: str | None = get_last_checkpoint(str(inputs.output))
    if found is None:
        logger.warning("%s holds no checkpoint yet: starting at step 0", inputs.output)
    return found


def _arguments(config: TrainConfig) -> Any:
    from transformers import TrainingArguments

    given = {k: v for k, v in config.training.items() if k != "resume_from_checkpoint"}
    known = [item.name for item in dataclasses.fields(TrainingArguments)]
    for key in given:
        if key not in known:
            raise ConfigError(unknown(key, known, "a field of TrainingArguments"))
    if given.get("output_dir", config.output_dir) != config.output_dir:
        raise ConfigError("training: output_dir is set outside training; leave it out there")
    if given.get("eval_strategy", "no") != "no" and config.eval_cache is None:
        raise ConfigError("training: eval_strategy needs an eval_cache; give one")
    defaults = {"output_dir": config.output_dir, "report_to": "none", "disable_tqdm": False}
    try:
        return TrainingArguments(**(defaults | given))
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"training: {error}") from error


def _trainer(
    inputs: _Inputs, dataset: CacheDataset, stop: StopFlag, progress: Progress | None
) -> DistillTrainer:
    from transformers import AutoTokenizer

    from cachekd.training.callbacks import ProgressCallback, StopCallback
    from cachekd.training.collate import Collator
    from cachekd.training.loader import CacheDataset
    from cachekd.training.spans import span_finder
    from cachekd.training.trainer import DistillTrainer

    arguments, config = _arguments(inputs.config), inputs.config
    model = _load_student(inputs)
    tokenizer = AutoTokenizer.from_pretrained(
        inputs.student, trust_remote_code=config.trust_remote_code
    )
    held_out = None
    if inputs.eval_cache is not None:
        held_out = CacheDataset(
            inputs.eval_cache, loss_mask=inputs.loss_mask, max_length=inputs.max_length
        )
    return DistillTrainer(
        model=model,
        args=arguments,
        objective=inputs.objective,
        train_dataset=dataset,
        eval_dataset=held_out,
        data_collator=Collator(
            inputs.loss_mask,
            pad_token_id=tokenizer.pad_token_id or 0,
            unigram=dataset.unigram() if inputs.objective.needs().unigram else None,
            spans=span_finder(tokenizer, inputs.objective.needs().spans),
        ),
        packing_capacity=inputs.max_length if config.packing else None,
        processing_class=tokenizer,
        callbacks=[StopCallback(stop), *([ProgressCallback(progress)] if progress else [])],
    )


def _load_student(inputs: _Inputs) -> Any:
    from transformers import AutoModelForCausalLM

    config = inputs.config
    options = {"dtype": config.dtype, "trust_remote_code": config.trust_remote_code}
    if config.attn_implementation is not None:
        options["attn_implementation"] = config.attn_implementation
    try:
        return AutoModelForCausalLM.from_pretrained(inputs.student, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ConfigError(
            f"student: {inputs.student} cannot be loaded as a causal language model: {error}"
        ) from error


def _facts(inputs: _Inputs, dataset: CacheDataset, trainer: DistillTrainer) -> dict[str, Any]:
    from transformers import TrainingArguments

    from cachekd.training.loader import summary

    # From the fields: a second TrainingArguments would reset the state of accelerate.
    default = {item.name: item.default for item in dataclasses.fields(TrainingArguments)}
    used = trainer.args.to_dict()
    return {
        "output_dir": str(inputs.output),
        "student": str(inputs.student),
        "caches": [record.cache_facts(cache) for cache in inputs.caches],
        "eval_cache": record.cache_facts(inputs.eval_cache) if inputs.eval_cache else None,
        "config": resolved(inputs.config),
        "objective_needs": resolved(inputs.objective.needs()),
        "loss_mask": str(inputs.loss_mask),
        "max_length": inputs.max_length,
        "training_arguments": {k: v for k, v in used.items() if v != default.get(k)},
        "versions": record.versions(),
        "counts": dict(summary(dataset)),
    }


def _interrupted(inputs: _Inputs, trainer: DistillTrainer, facts: dict[str, Any]) -> Incomplete:
    facts |= {"status": "interrupted", "history": trainer.state.log_history}
    if trainer.is_world_process_zero():
        record.write_record(inputs.output, facts)
    trainer.leave_group()
    step = trainer.state.global_step
    return Incomplete(
        f"stopped at step {step} of {trainer.state.max_steps}; saved as "
        f"{inputs.output / f'checkpoint-{step}'}. The same command with "
        "--resume-from-checkpoint true continues"
    )


def _last_evaluation(trainer: DistillTrainer) -> dict[str, Any]:
    """Held-out figures of the student as it is now; taken from the log if they are there."""
    step, logged = trainer.state.global_step, trainer.state.log_history
    if not trainer.args.load_best_model_at_end:
        for row in reversed(logged):
            if row.get("step") == step and "eval_loss" in row:
                return dict(row)
    figures: dict[str, Any] = trainer.evaluate()
    return figures


def _finish(inputs: _Inputs, trainer: DistillTrainer, facts: dict[str, Any]) -> dict[str, Any]:
    final = _last_evaluation(trainer) if inputs.eval_cache is not None else None
    trainer.save_model(str(inputs.output))
    facts |= {
        "status": "done",
        "history": trainer.state.log_history,
        "final_eval": final,
        "empty_batches": trainer.empty_batches,
    }
    if trainer.is_world_process_zero():
        record.write_record(inputs.output, facts)
    trainer.leave_group()
    return facts
