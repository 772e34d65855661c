"""On-policy runs: what must hold before anything is loaded, and the Trainer made of the parts.

In: settings, an objective that asks for rollouts, the student's folder. Out: a found teacher, the
prompts, and an `OnPolicyTrainer`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachekd.config import TrainConfig
from cachekd.data.models import end_tokens, model_config
from cachekd.errors import ConfigError
from cachekd.objectives import Needs
from cachekd.objectives._rollouts import Rollouts
from cachekd.plugins import available, find
from cachekd.store.identity import refuse_difference

if TYPE_CHECKING:
    from cachekd.rollouts.teacher import FoundTeacher
    from cachekd.store.reader import Cache
    from cachekd.training.inputs import Inputs
    from cachekd.training.prompts import Prompts, TextSamples
    from cachekd.training.texts import Wording

_log = logging.getLogger(__name__)
SCORES = "scores"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Live:
    """The live half of a run, checked.

    Attributes:
        rollouts: what the objective asks.
        teacher: found, not loaded.
        wording: how data without a cache becomes tokens.
        limit: most tokens of prompt and response, or None.
    """

    rollouts: Rollouts
    teacher: FoundTeacher
    wording: Wording
    limit: int


def check_live(
    config: TrainConfig, needs: Needs, student: Path, caches: Sequence[Cache], clock: str
) -> Live | None:
    """The live half of a run, or None for an objective that trains from caches alone.

    Raises:
        ConfigError: objective, teacher and settings do not serve each other.
        MismatchError: the teacher is not that of the student's tokenizer, or of the caches.
        TeacherError: it cannot be found or reached.
    """
    if needs.rollouts is None:
        _refuse_idle_teacher(config)
        return None
    from cachekd.rollouts.teacher import find_teacher

    _check_settings(config, needs.rollouts)
    temperatures = tuple(sorted(set(needs.temperatures) - {1.0}))
    teacher = find_teacher(config, student, temperatures)
    if needs.rollouts.teacher_mix and teacher.remote:
        raise ConfigError(
            "teacher_mix: the teacher is part of every step of sampling, and over HTTP each token "
            "of each batch would be a round trip with a whole distribution; a scoring server "
            "keeps no state of half-written text. Load it here with --teacher, or set "
            "--teacher-mix 0"
        )
    for cache in caches:
        if "weights" in teacher.source:
            refuse_difference(
                "train",
                cache.identity.source,
                teacher.source,
                f"cache {cache.name!r}",
                "the live teacher",
            )
        else:
            _log.warning(
                "the live teacher does not say which weights it has; whether they are those of "
                "cache %r is not checked",
                cache.name,
            )
    return _live(config, needs.rollouts, teacher, student, clock)


def _live(
    config: TrainConfig, rollouts: Rollouts, teacher: FoundTeacher, student: Path, clock: str
) -> Live:
    from transformers import AutoTokenizer

    from cachekd.training.checks import resolve_max_length
    from cachekd.training.texts import wording_of_run

    own = resolve_max_length(config.max_length, student)
    limit = min(own or teacher.context_length, teacher.context_length)
    tokenizer = AutoTokenizer.from_pretrained(student, trust_remote_code=config.trust_remote_code)
    vocab_size = int(teacher.source["vocab_size"])
    return Live(
        rollouts=rollouts,
        teacher=teacher,
        wording=wording_of_run(config, tokenizer, vocab_size, clock),
        limit=limit,
    )


def _refuse_idle_teacher(config: TrainConfig) -> None:
    if not config.live:
        return
    serve = [
        name
        for name in available("objectives")
        if hasattr(find("objectives", name).Options, "max_new_tokens")
    ]
    raise ConfigError(
        f"teacher: the objective {config.objective} with these options trains from caches, and "
        "would never ask a live teacher. Leave it out, or choose an objective whose text the "
        f"student writes: {', '.join(serve)}"
    )


def _check_settings(config: TrainConfig, rollouts: Rollouts) -> None:
    """What an on-policy run cannot do, and what it cannot do without.

    Raises:
        ConfigError: names the setting.
    """
    if not config.live:
        raise ConfigError(
            f"objective {config.objective} trains on text that the student writes, which only a "
            "live teacher can score; give one with --teacher or --teacher-url"
        )
    if config.packing:
        raise ConfigError(
            f"packing: responses of objective {config.objective} have no length before they are "
            "written; use --no-packing"
        )
    if config.mixture:
        raise ConfigError(
            "mixture: text of the student is scored by one live teacher; leave it out"
        )
    if config.on_long not in ("fail", "skip"):
        raise ConfigError(
            f"on_long: a prompt cannot be cut or split; expected fail or skip with objective "
            f"{config.objective}; found {config.on_long}"
        )
    if config.lm_data and rollouts.gold == "none":
        raise ConfigError(
            f"lm_data: the objective {config.objective} with these options trains on no text "
            "beside the student's own; leave it out"
        )
    adaptive = rollouts.share.kind == "adaptive"
    if adaptive and config.training.get("eval_strategy", "no") == "no":
        _log.warning(
            "the share of student text grows when the held-out loss does, and nothing is "
            "evaluated: it stays %g. Give --eval-data and --eval-strategy",
            rollouts.share.lmbda,
        )


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
    from dataclasses import replace

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
    from cachekd.rollouts.sampling import DrawSpec, Mix
    from cachekd.rollouts.scoring import CachedScores
    from cachekd.training.collate_rollouts import RolloutCollator

    live, config = inputs.live, inputs.config
    assert live is not None, "asked for an on-policy run"
    spec = live.rollouts
    teacher = live.teacher.load(config.teacher_device or str(args.device), None)
    folder = Path(config.score_cache or inputs.output / SCORES)
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
        "mix": Mix(model=teacher.model, alpha=spec.teacher_mix) if spec.teacher_mix else None,
        "beside": _plain_text(inputs, tokenizer, prompts, args),
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
    spec = inputs.live.rollouts if inputs.live else Rollouts()
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
