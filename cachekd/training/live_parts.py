"""The parts of an on-policy run: prompts, what its Trainer is made of, and what it leaves behind.

In: checked `Inputs`. Out: `Prompts`, keyword arguments of an `OnPolicyTrainer` (the teacher is
loaded here), and a cache of all that the student wrote.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cachekd.data.models import end_tokens, model_config

if TYPE_CHECKING:
    from cachekd.training.inputs import Inputs
    from cachekd.training.on_policy import OnPolicyTrainer
    from cachekd.training.prompts import Prompts, TextSamples
    from cachekd.training.texts import Wording

SCORES = "scores"
"""Folder of the score cache in the output folder, where no other is named."""


def prompts_of(inputs: Inputs, tokenizer: Any, options: dict[str, Any]) -> Prompts:
    """The prompts of a run: samples of its caches, or of its data where there is none."""
    from cachekd.training.loader import CacheDataset
    from cachekd.training.prompts import Prompts

    live, config = inputs.live, inputs.config
    assert live is not None, "asked for an on-policy run"
    samples: CacheDataset | TextSamples
    if inputs.caches:
        samples = CacheDataset(
            inputs.caches, loss_mask=inputs.loss_mask, max_length=inputs.max_length, **options
        )
    else:
        samples = text_samples(inputs, tokenizer, config.data)
    return Prompts(samples, live.rollouts.max_new_tokens, live.limit, config.on_long)


def text_samples(inputs: Inputs, tokenizer: Any, data: tuple[str, ...]) -> TextSamples:
    """Samples of data files, worded as the run words them."""
    from cachekd.training.prompts import TextSamples

    return TextSamples(
        replace(inputs.config, data=data), wording_of(inputs), tokenizer, inputs.max_length
    )


def wording_of(inputs: Inputs) -> Wording:
    """How a run words text: as its first cache does, or by itself."""
    from cachekd.training.texts import wording_of_cache

    if inputs.caches:
        return wording_of_cache(inputs.caches[0].identity)
    assert inputs.live is not None, "a run without a cache has a live teacher"
    return inputs.live.wording


def on_policy_parts(inputs: Inputs, tokenizer: Any, prompts: Prompts, args: Any) -> dict[str, Any]:
    """What an `OnPolicyTrainer` takes beside what any Trainer does; loads the teacher."""
    from cachekd.rollouts.responses import DrawSpec
    from cachekd.rollouts.sampling import Mix
    from cachekd.rollouts.scoring import CachedScores
    from cachekd.training.collate_rollouts import RolloutCollator
    from cachekd.training.keeping import RolloutLog

    live, config = inputs.live, inputs.config
    assert live is not None, "asked for an on-policy run"
    spec = live.rollouts
    teacher = live.teacher.load(config.teacher_device or str(args.device), None)
    folder = config.score_cache or str(inputs.output / SCORES)
    ends = {*end_tokens(inputs.student, model_config(inputs.student)), tokenizer.eos_token_id}
    return {
        "rollouts": spec,
        "scores": CachedScores(teacher, folder, config.score_batch_tokens),
        "draw": DrawSpec(
            max_new_tokens=spec.max_new_tokens,
            temperature=spec.temperature,
            top_k=spec.top_k,
            top_p=spec.top_p,
            seed=args.seed,
            end_tokens=tuple(sorted(token for token in ends if token is not None)),
            vocab_size=prompts.vocab_size,
            batch_tokens=config.score_batch_tokens,
        ),
        "batch_tokens": config.score_batch_tokens,
        "mix": Mix(model=teacher.model, alpha=spec.teacher_mix) if spec.teacher_mix else None,
        "teacher": teacher,
        "beside": _plain_text(inputs, tokenizer, prompts, args),
        "kept": RolloutLog(inputs.output, args.process_index) if config.keep_rollouts else None,
        "data_collator": RolloutCollator(
            inputs.loss_mask,
            unscored=spec.gold == "text",
            pad_token_id=tokenizer.pad_token_id or 0,
            reduction=config.reduction,
            spans=_spans(inputs, tokenizer),
        ),
    }


def _spans(inputs: Inputs, tokenizer: Any) -> Any:
    from cachekd.training.spans import span_finder

    return span_finder(tokenizer, inputs.objective.needs().spans)


def _plain_text(inputs: Inputs, tokenizer: Any, prompts: Prompts, args: Any) -> Any:
    """The text beside the student's own, where it is not the data's responses."""
    from cachekd.training.plain_text import PlainText

    if not inputs.config.lm_data:
        return None
    assert inputs.live is not None, "asked for an on-policy run"
    spec = inputs.live.rollouts
    batch = args.per_device_train_batch_size
    step = batch * args.world_size
    group = spec.collect or step
    groups = -(-int((prompts.starts >= 0).sum()) // group)
    return PlainText(
        text_samples(inputs, tokenizer, inputs.config.lm_data),
        seed=args.seed,
        rounds=groups * (group // step) * spec.inner_epochs,
        batch=batch,
        rank=args.process_index,
        world=args.world_size,
    )


def keep_rollouts(inputs: Inputs, trainer: OnPolicyTrainer) -> dict[str, Any] | None:
    """Write all text of a run to the cache that the settings name; every process must call."""
    from cachekd.rollouts.scoring import CachedScores
    from cachekd.training.keeping import keep_log

    url = inputs.config.keep_rollouts
    if not url:
        return None
    trainer.scores.flush()
    trainer.accelerator.wait_for_everyone()
    kept = None
    if trainer.is_world_process_zero():  # with scores of its own, which sees those of all others
        folder = inputs.config.score_cache or str(inputs.output / SCORES)
        scores = CachedScores(trainer.teacher, folder, inputs.config.score_batch_tokens)
        made = {**wording_of(inputs).made, "teacher": inputs.config.teacher}
        prompts = trainer.train_dataset
        kept = keep_log(inputs.output, prompts, scores, trainer.teacher, url, made)
        scores.close()
    trainer.accelerator.wait_for_everyone()
    return kept
