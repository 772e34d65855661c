"""What a run leaves in its output folder: the student, ``run.json`` and ``report.html``.

In: checked inputs and a Trainer that has trained. Out: files, and the record as plain JSON types.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from cachekd.config import resolved
from cachekd.errors import Incomplete
from cachekd.plugins import find
from cachekd.training import record
from cachekd.training.page import REPORT, write_report

if TYPE_CHECKING:
    from cachekd.training.inputs import Inputs
    from cachekd.training.loader import CacheDataset
    from cachekd.training.prompts import Prompts
    from cachekd.training.trainer import DistillTrainer

_PLACE = ("step", "epoch")


def facts_of(
    inputs: Inputs, dataset: CacheDataset | Prompts, trainer: DistillTrainer
) -> dict[str, Any]:
    """What a run is made of, known before its first step."""
    from transformers import TrainingArguments

    from cachekd.training.loader import summary
    from cachekd.training.prompts import Prompts

    # From the fields: a second TrainingArguments would reset the state of accelerate.
    default = {item.name: item.default for item in dataclasses.fields(TrainingArguments)}
    args = trainer.args
    used = args.to_dict()
    sizes = [(value.numel(), value.requires_grad) for value in trainer.model.parameters()]
    return {
        "output_dir": str(inputs.output),
        "student": str(inputs.student),
        "parameters": sum(size for size, _ in sizes),
        "trained_parameters": sum(size for size, trained in sizes if trained),
        "caches": [record.cache_facts(cache) for cache in inputs.caches],
        "eval_cache": record.cache_facts(inputs.eval_cache) if inputs.eval_cache else None,
        "eval_data": _text_counts(trainer),
        "config": record.without_tokens(resolved(inputs.config)),
        "objective": {
            "name": inputs.config.objective,
            "options": resolved(
                find("objectives", inputs.config.objective).Options(
                    **inputs.config.objective_options
                )
            ),
        },
        "objective_needs": resolved(inputs.objective.needs()),
        "loss_mask": str(inputs.loss_mask),
        "max_length": inputs.max_length,
        "total_train_batch_size": args.train_batch_size
        * args.gradient_accumulation_steps
        * args.world_size,
        "training_arguments": {k: v for k, v in used.items() if v != default.get(k)},
        "versions": record.versions(),
        "counts": dict(dataset.counts() if isinstance(dataset, Prompts) else summary(dataset)),
        "clock": inputs.clock,
        "scores_id": inputs.live.teacher.scores_id if inputs.live else None,
        "teacher": dict(inputs.live.teacher.source) if inputs.live else None,
    }


def _text_counts(trainer: DistillTrainer) -> dict[str, Any] | None:
    """Counts of the held-out text, if there is one."""
    from cachekd.training.eval_text import TextDataset

    text = trainer.eval_text or trainer.eval_dataset
    return dataclasses.asdict(text.counts) if isinstance(text, TextDataset) else None


def interrupted(inputs: Inputs, trainer: DistillTrainer, facts: dict[str, Any]) -> Incomplete:
    """Write down a run that was told to stop, and make the error that says how it continues."""
    _write(inputs, trainer, facts | {"status": "interrupted"})
    trainer.leave_group()
    step = trainer.state.global_step
    return Incomplete(
        f"stopped at step {step} of {trainer.state.max_steps}; saved as "
        f"{inputs.output / f'checkpoint-{step}'}. The same command with "
        "--resume-from-checkpoint true continues"
    )


def interrupted_with_workers(inputs: Inputs) -> Incomplete:
    """The error where the same signal ended the loader's workers, and no step could follow."""
    return Incomplete(
        f"stopped by a signal that its loader workers got too; {inputs.output} keeps the "
        "checkpoint before. The same command with --resume-from-checkpoint true continues"
    )


def _last_evaluation(trainer: DistillTrainer) -> dict[str, Any]:
    """Held-out figures of the student as it is now; taken from the log if they are there."""
    step, logged = trainer.state.global_step, trainer.state.log_history
    if not trainer.args.load_best_model_at_end:
        rows = [row for row in logged if row.get("step") == step]
        found = {name: value for row in rows for name, value in row.items()}
        if "eval_loss" in found and (trainer.eval_text is None or "eval_text_loss" in found):
            return {k: v for k, v in found.items() if k.startswith("eval_") or k in _PLACE}
    figures: dict[str, Any] = trainer.evaluate()
    return figures


def finish(inputs: Inputs, trainer: DistillTrainer, facts: dict[str, Any]) -> dict[str, Any]:
    """Evaluate and save the student, write down the run, keep what it wrote if that is asked."""
    from cachekd.training.live_parts import keep_rollouts
    from cachekd.training.on_policy import OnPolicyTrainer

    final = _last_evaluation(trainer) if trainer.eval_dataset is not None else None
    trainer.save_student(inputs.output)
    facts |= {"status": "done", "final_eval": final}
    _write(inputs, trainer, facts)
    if isinstance(trainer, OnPolicyTrainer):
        facts |= {"kept_rollouts": keep_rollouts(inputs, trainer)}
        _write(inputs, trainer, facts)
    if trainer.args.push_to_hub:  # after the record and the report, which belong to the student
        trainer.push_to_hub(revision=trainer.args.hub_revision)
    trainer.leave_group()
    return facts


def _write(inputs: Inputs, trainer: DistillTrainer, facts: dict[str, Any]) -> None:
    """Write the record and the report; every process must call."""
    facts |= {
        "history": trainer.state.log_history,
        "best_step": trainer.state.best_global_step,
        "empty_batches": trainer.total(trainer.empty_batches),
        "skipped_steps": trainer.finite.skipped,
        "throughput": trainer.meter.figures(trainer.accelerator),
        "rollouts": trainer.rollout_figures(),
    }
    if trainer.is_world_process_zero():
        record.write_record(inputs.output, facts)
        write_report(inputs.output / REPORT, facts)
