"""What a run is made of: settings, caches, student, objective and teacher, checked as one.

In: a `TrainConfig`. Out: `Inputs`. Everything that can be wrong is found from small files, before a
weight is loaded; a wrong pair raises, with both sides named.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cachekd.config import TrainConfig
from cachekd.data.alignment import LossMask
from cachekd.data.models import resolve_model
from cachekd.errors import ConfigError
from cachekd.objectives import Needs, Objective, build
from cachekd.store.reader import Cache, open_cache
from cachekd.training import attention_checks, caveats, checkpoints, checks, record, student
from cachekd.training.arguments import resume_of
from cachekd.training.live import Live, check_live

if TYPE_CHECKING:
    from cachekd.losses.attention import AttentionMapping


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
    live: Live | None
    clock: str


def loss_mask_of(config: TrainConfig) -> LossMask:
    """The loss mask that two flags ask for."""
    if config.assistant_only_loss:
        return LossMask.ASSISTANT
    if config.completion_only_loss is None:
        return LossMask.AUTO
    return LossMask.COMPLETION if config.completion_only_loss else LossMask.ALL


def checked(config: TrainConfig) -> Inputs:
    """The inputs of a run.

    Raises:
        ConfigError: a setting is wrong, or the output folder holds another run.
        MismatchError: caches, student, teacher and objective do not belong together.
    """
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
    caveats.warn_of_provenance(everything, folder)
    caveats.warn_of_asserted(everything)
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
    clock = record.clock_of(output, resume=bool(resume))
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
        live=check_live(config, needs, folder, caches, clock),
        clock=clock,
    )


def _open(text: str, config: TrainConfig, needs: Needs) -> Cache:
    """The cache of ``NAME=PATH``; attention is decoded only for an objective that takes it."""
    name, location = checks.parse_cache(text)
    return open_cache(location, partial=config.partial, name=name, attention=needs.attention > 0)


def checkpoint_of(inputs: Inputs) -> str | None:
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
