"""MiniLLM against SFT, KD and SeqKD, and its ablations (Gu et al., ICLR 2024; Tables 1, 3 and 4).

All ways start from a student that was fine-tuned on the data, and take as many updates. What
policy gradients change is seen on the student's own text: besides ROUGE-L there are the sequence
reverse KL, distinct 4-grams, length, and how errors accumulate (ExAccErr, with R and E apart).

    python benchmarks/reproduce/minillm.py --teacher T --student FINE_TUNED --data TRAIN.jsonl \
        --dev-data DEV.jsonl --test-data TEST.jsonl --work WORK

Where a GPU is: --config benchmarks/reproduce/minillm.yaml --work WORK.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from carry_out import Reproduction, carry_out, journal_of
from measure import dev_of, test_of
from orderings import Ordering
from settings import Settings, run_command
from ways import Way, capture

from cachekd.config import option

ABLATIONS: dict[str, dict[str, Any]] = {
    "without length norm": {"length_norm": False},
    "without teacher mix": {"teacher_mix": 0.0},
    "without single step": {"single_step": 0.0},
    "without language loss": {"lm_coef": 0.0},
}
BASELINES = ("SFT", "KD", "SeqKD")


@dataclass(frozen=True, kw_only=True)
class MiniLLMSettings(Settings):
    """Settings, and how MiniLLM collects."""

    collect: int = option(64, "Prompts that are answered at once.", group="Sizes")
    inner_epochs: int = option(4, "Times that a collection is trained on.", group="Sizes")


def ways_of(settings: MiniLLMSettings, gold: str, written: str) -> tuple[Way, ...]:
    """Baselines of the data and of the teacher's text, then MiniLLM and what is taken from it."""
    half = {"loss": {"ce": 0.5, "kd": 0.5}}
    collected = {"collect": settings.collect, "inner_epochs": settings.inner_epochs}
    policy = {"MiniLLM": {}, **ABLATIONS}
    return (
        Way(name="start", family="start", objective=None),
        Way(name="SFT", family="cross entropy", objective="sft", caches={"train": gold}),
        Way(name="KD", family="KD", objective="kd", options=half, caches={"train": gold}),
        Way(name="SeqKD", family="SeqKD", objective="seqkd", caches={"train": written}),
        *(
            Way(
                name=name,
                family="MiniLLM",
                objective="minillm",
                options={**collected, **changes},
            )
            for name, changes in policy.items()
        ),
    )


def orderings() -> tuple[Ordering, ...]:
    """What the paper's tables say, of figures that are taken here."""
    found = [("MiniLLM", other, "rouge_l", "Table 1") for other in BASELINES]
    found += [("MiniLLM", other, "sequence_reverse_kl", "Eq. 1") for other in BASELINES]
    found += [("MiniLLM", other, "excess", "Figure 6") for other in BASELINES]
    found += [("SFT", "MiniLLM", metric, "Table 3") for metric in ("distinct_4", "loss")]
    ablated = [name for name in ABLATIONS if name != "without language loss"]
    found += [("MiniLLM", other, "rouge_l", "Table 4") for other in ablated]
    found += [("MiniLLM", other, "sequence_reverse_kl", "Table 4") for other in ablated]
    found += [("MiniLLM", "without language loss", "loss", "Table 16")]
    return tuple(
        Ordering(better=better, worse=worse, metric=metric, source=source)
        for better, worse, metric, source in found
    )


def reproduce(settings: MiniLLMSettings) -> Mapping[str, Any]:
    """Capture, train, look, judge."""
    journal = journal_of(settings)
    gold, _ = capture(settings, "data", rows="response")
    written, told = capture(
        settings,
        "written",
        rows="response",
        generate="sample",
        max_new_tokens=settings.max_new_tokens,
    )
    what = Reproduction(
        name="minillm",
        title="MiniLLM",
        settings=settings,
        ways=ways_of(settings, gold, written),
        dev=dev_of(settings),
        looks=(test_of(settings, own_text=True, exposure=True),),
        orderings=orderings(),
        columns={
            "rouge_l": "ROUGE-L",
            "sequence_reverse_kl": "sequence reverse KL",
            "kl": "KL",
            "loss": "loss",
            "distinct_4": "distinct-4",
            "length": "length",
            "excess": "ExAccErr",
            "student_error": "R",
            "teacher_error": "E",
        },
        facts=lambda rows: {"written": told},
    )
    return carry_out(what, journal)


if __name__ == "__main__":
    run_command(MiniLLMSettings, reproduce, __doc__)
