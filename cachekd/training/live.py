"""On-policy runs: what must hold before anything is loaded.

In: settings, an objective that asks for rollouts, the student's folder. Out: `Live`, with a teacher
that is found and not loaded; a wrong pair, or a setting that does nothing, is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cachekd.config import TrainConfig
from cachekd.errors import ConfigError
from cachekd.objectives import Needs
from cachekd.objectives._rollouts import Rollouts, Share
from cachekd.plugins import available, find
from cachekd.store.identity import refuse_difference

if TYPE_CHECKING:
    from cachekd.rollouts.teacher import FoundTeacher
    from cachekd.store.reader import Cache
    from cachekd.training.texts import Wording

_log = logging.getLogger(__name__)
_DATA_ALONE = Rollouts(max_new_tokens=1, share=Share(lmbda=0.0))
"""Every batch is the data's own; the student writes nothing."""


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

    Where there is no cache, the teacher of such an objective scores the data's own text.

    Raises:
        ConfigError: objective, teacher and settings do not serve each other.
        MismatchError: the teacher is not that of the student's tokenizer, or of the caches.
        TeacherError: it cannot be found or reached.
    """
    rollouts = needs.rollouts
    if rollouts is None and needs.one_teacher and config.live and not config.cache:
        rollouts = _DATA_ALONE
    if rollouts is None:
        _refuse_idle_teacher(config)
        return None
    from cachekd.rollouts.teacher import find_teacher

    _check_settings(config, rollouts)
    _check_targets(config, needs)
    temperatures = tuple(sorted(set(needs.temperatures) - {1.0}))
    teacher = find_teacher(config, student, temperatures)
    if rollouts.teacher_mix and teacher.remote:
        raise ConfigError(
            "teacher_mix: the teacher is part of every step of sampling, and over HTTP each token "
            "of each batch would be a round trip with a whole distribution; a scoring server "
            "keeps no state of half-written text. Load it here with --teacher, or set "
            "--teacher-mix 0"
        )
    _check_pairs(teacher, caches)
    if config.keep_rollouts:
        from cachekd.rollouts.keep import check_keep

        check_keep(config.keep_rollouts, teacher)
    return _live(config, rollouts, teacher, student, clock)


def _check_pairs(teacher: FoundTeacher, caches: Sequence[Cache]) -> None:
    """Refuse a live teacher that is another than that of a cache."""
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
        "would never ask a live teacher. Leave it out; or leave --cache out, where an objective "
        "learns from one teacher; or choose an objective whose text the student writes: "
        f"{', '.join(serve)}"
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


def _check_targets(config: TrainConfig, needs: Needs) -> None:
    """What a live teacher does not give.

    Raises:
        ConfigError: names what the objective takes.
    """
    if needs.unigram:
        raise ConfigError(
            "tail: a live teacher has no mean distribution, which a cache learns of its text; use "
            "--tail bucket or flat"
        )
    if needs.full and config.logits_top_k:
        raise ConfigError(
            f"logits_top_k: objective {config.objective} with these options takes whole "
            f"distributions; found {config.logits_top_k}. Set --logits-top-k 0"
        )
    if needs.attention or needs.routed or needs.start or needs.generated:
        raise ConfigError(
            f"objective {config.objective} takes attention, routed samples or text that the "
            "teacher wrote, which a live teacher does not give; train from caches"
        )
