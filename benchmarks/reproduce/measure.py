"""Figures of a student on held-out data: `cachekd.evaluate`, flattened to numbers by name.

In: a student and held-out data. Out: figures, each a mean over the draws where it is of answers;
None where one could not be had. Names: ``rouge_l``; ``loss``, the mean over references of their
mean NLL; ``kl``, forward KL of the teacher on the references (nats per token); ``distinct_4`` in
per cent; ``length`` in tokens; ``ended`` in per cent. Where it is asked for, of the student's own
text ``sequence_reverse_kl`` and ``teacher_nll``, and of errors that accumulate ``excess`` (ExAccErr
in per cent), ``student_error`` (R) and ``teacher_error`` (E).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from settings import Settings
from transformers import AutoModelForCausalLM, AutoTokenizer
from ways import capture

import cachekd
from cachekd.config import DataConfig, EvaluateConfig
from cachekd.data.models import end_tokens, model_config, resolve_model
from cachekd.errors import CacheNotFound, UnsealedCache
from cachekd.evaluation.own_text import own_text
from cachekd.rollouts.responses import DrawSpec
from cachekd.training.texts import Wording, samples_of
from cachekd.types import Int32

_SHOWN = {
    "rouge_l": "rouge_l",
    "loss": "loss",
    "kl": "cache_forward_kl",
    "distinct_4": "distinct_4",
    "length": "response_tokens",
    "ended": "ended",
}
_FURTHEST = 50
"""Tokens at which ExAccErr is told: where enough responses are still alive."""
_MADE = {"prompt_template": "auto", "add_eos": True, "clock": "2026-01-01T00:00:00"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Data that students are looked at with.

    Attributes:
        name: stands before its figures; empty where there is only one.
        data, split, columns: as of evaluate.
        teacher: whom the student's distributions are compared with; empty: nobody.
        own_text: whether teacher and student are compared on the student's own text.
        exposure: whether ExAccErr is taken, which costs more than all the rest.
    """

    name: str = ""
    data: tuple[str, ...]
    split: str
    columns: Mapping[str, str] = field(default_factory=dict)
    teacher: str = ""
    own_text: bool = False
    exposure: bool = False

    def rows(self, settings: Settings) -> dict[str, Any]:
        """Settings that choose its rows."""
        named = {"data": self.data, "split": self.split, "columns": self.columns}
        return {**named, "max_samples": settings.prompts}


def dev_of(settings: Settings) -> HeldOut:
    """What learning rates are chosen on."""
    return HeldOut(data=settings.dev_data, split=settings.dev_split, columns=settings.columns)


def test_of(settings: Settings, **further: bool) -> HeldOut:
    """What all figures are of."""
    return HeldOut(
        data=settings.test_data,
        split=settings.test_split,
        columns=settings.columns,
        teacher=settings.teacher,
        **further,
    )


def figures_of(
    settings: Settings, student: Path, look: HeldOut, draws: Sequence[int]
) -> dict[str, float | None]:
    """What a student comes to on held-out data.

    Args:
        settings: sizes.
        student: folder of the model.
        look: the data, and what is taken of it.
        draws: seeds of its answers; ExAccErr takes the first alone.
    """
    cache = {"cache": _targets(settings, look)} if look.teacher else {}
    metrics = _evaluated(settings, student, look, draws, **cache)
    figures = {name: _mean(metrics, key) for name, key in _SHOWN.items()}
    if look.exposure:
        figures |= _exposure(settings, student, look, draws[0])
    if look.own_text:
        figures |= _own_text(settings, student, look, draws)
    return figures


def _targets(settings: Settings, look: HeldOut) -> str:
    """A cache of the teacher's distributions over the references; made once, for all students."""
    name, top_k = "-".join(filter(None, ("heldout", look.name))), settings.heldout_top_k
    place = str(Path(settings.work) / "caches" / name)
    try:
        cachekd.open_cache(place)
    except (CacheNotFound, UnsealedCache):
        selection = {"logits_selection": "top_k" if top_k else "full", "logits_top_k": top_k}
        changes = {**look.rows(settings), "teacher": look.teacher, "rows": "response"}
        capture(settings, name, **changes, **selection)
    return place


def _evaluated(
    settings: Settings, student: Path, look: HeldOut, draws: Sequence[int], **further: Any
) -> dict[str, Any]:
    values = {
        **look.rows(settings),
        "model": (f"student={student}",),
        "seeds": tuple(draws),
        "max_new_tokens": settings.max_new_tokens,
        **settings.evaluate,
        **further,
    }
    metrics: dict[str, Any] = cachekd.evaluate(EvaluateConfig(**values))["models"][0]["metrics"]
    return metrics


def _mean(metrics: Mapping[str, Any], name: str) -> float | None:
    found = metrics.get(name)
    return None if found is None else found["mean"]


def _exposure(
    settings: Settings, student: Path, look: HeldOut, draw: int
) -> dict[str, float | None]:
    length = min(_FURTHEST, settings.max_new_tokens)
    further = {"teacher": look.teacher, "exaccerr_lengths": (length,)}
    metrics = _evaluated(settings, student, look, (draw,), **further)
    found = metrics[f"exaccerr_{length}"]
    parts = {"student_error": "student", "teacher_error": "teacher", "alive": "alive_student"}
    own = {name: mean(found["parts"][key]) for name, key in parts.items() if found["parts"]}
    return {"excess": found["mean"], **dict.fromkeys(parts), **own} | {
        name: _mean(metrics, name) for name in ("reverse_kl", "tvd")
    }


def _own_text(
    settings: Settings, student: Path, look: HeldOut, draws: Sequence[int]
) -> dict[str, float | None]:
    """Means over the draws of what both models say of the student's answers."""
    models = [
        AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
        for place in (student, look.teacher)
    ]
    folder = resolve_model(str(student), None)
    prompts = _prompts(settings, folder, look)
    found = [own_text(*models, prompts, _draw(settings, folder, seed), {}) for seed in draws]
    return {
        "sequence_reverse_kl": mean(one.sequence_reverse_kl for one in found),
        "teacher_nll": mean(one.teacher_nll for one in found),
    }


def _draw(settings: Settings, student: Path, seed: int) -> DrawSpec:
    config = model_config(student)
    return DrawSpec(
        max_new_tokens=settings.max_new_tokens,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        seed=seed,
        end_tokens=end_tokens(student, config),
        vocab_size=int(config["vocab_size"]),
        batch_tokens=16384,
    )


def _prompts(settings: Settings, student: Path, look: HeldOut) -> list[Int32]:
    """Prompts of the held-out rows that leave room for an answer."""
    tokenizer = AutoTokenizer.from_pretrained(student)
    wording = Wording(made=_MADE, vocab_size=len(tokenizer))
    prepared = samples_of(DataConfig(**look.rows(settings)), wording, tokenizer)
    longest = settings.max_length - settings.max_new_tokens
    prompts = [one.input_ids[: one.prompt_length] for one in prepared.samples if one.prompt_length]
    return [ids for ids in prompts if len(ids) <= longest]
