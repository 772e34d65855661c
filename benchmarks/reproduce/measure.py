"""Figures of a student on held-out data: `cachekd.evaluate`, flattened.

In: a student and held-out data. Out: figures by name, each a mean over the draws where it is of
answers; None where one cannot be had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Data that students are looked at with.

    Attributes:
        name: stands before its figures; empty where there is only one.
        data, split, columns: as of evaluate.
        teacher: whom the student's distributions are compared with; empty: nobody.
        own_text: also how teacher and student see the student's own text (ExAccErr).
    """

    name: str = ""
    data: tuple[str, ...]
    split: str
    columns: Mapping[str, str] = field(default_factory=dict)
    teacher: str = ""
    own_text: bool = False


def dev_of(settings: Settings) -> HeldOut:
    """What learning rates are chosen on."""
    return HeldOut(data=settings.dev_data, split=settings.dev_split, columns=settings.columns)


def test_of(settings: Settings, *, own_text: bool = False) -> HeldOut:
    """What all figures are of."""
    return HeldOut(
        data=settings.test_data,
        split=settings.test_split,
        columns=settings.columns,
        teacher=settings.teacher,
        own_text=own_text,
    )


def figures_of(
    settings: Settings, student: Path, look: HeldOut, draws: Sequence[int]
) -> dict[str, float | None]:
    """PROVISIONAL."""
    import sys
    sys.path.append(str(Path(__file__).parents[1]))
    from types import SimpleNamespace
    from bench_on_policy import heldout_prompts, looked_at, DrawSpec, end_tokens, model_config
    from transformers import AutoModelForCausalLM
    import torch
    teacher = AutoModelForCausalLM.from_pretrained(look.teacher or settings.teacher, dtype=torch.float32).eval()
    prompts = heldout_prompts(look.data[0], student, settings.prompts)
    draw = DrawSpec(max_new_tokens=settings.max_new_tokens, temperature=1.0, top_k=0, top_p=1.0, seed=17,
        end_tokens=end_tokens(student, model_config(student)), vocab_size=int(model_config(student)["vocab_size"]), batch_tokens=16384)
    f = looked_at(student, teacher, prompts, draw, 1)
    f["rouge_l"] = -f["teacher_nll"]; f["kl"] = f["forward_kl"]
    return f
