"""SFT, attention alone, prediction alone, and both.

Table 2 of "A Teacher Is Worth A Million Instructions".

One capture holds the teacher's predictions and its attention maps; the four students see the same
samples in the same order. The paper judges answers with MT-Bench; here they are compared with the
references (ROUGE-L), and the student's distributions with the teacher's (KL).

    python benchmarks/reproduce/kd_attention.py --teacher T --student S --data TRAIN.jsonl \
        --dev-data DEV.jsonl --test-data TEST.jsonl --work WORK

Where a GPU is: --config benchmarks/reproduce/kd_attention.yaml --work WORK.
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

LADDER = ("SFT", "attention alone", "prediction alone", "both")
LOSSES = {
    "SFT": {"ce": 1.0},
    "attention alone": {"attention": 1.0},
    "prediction alone": {"kd": 1.0},
    "both": {"kd": 1.0, "attention": 1.0},
}


@dataclass(frozen=True, kw_only=True)
class KDSettings(Settings):
    """Settings, and which attention is kept."""

    attention_layers: tuple[int, ...] = option(
        (), "Layers of the teacher, from 0. Default: that of precompute.", group="Sizes"
    )


def ways_of(cache: str) -> tuple[Way, ...]:
    """The student as it is, and the rows of the table; each loss has a learning rate of its own."""
    return (
        Way(name="start", family="start", objective=None),
        *(
            Way(
                name=name,
                family=name,
                objective="kd",
                options={"loss": LOSSES[name]},
                caches={"train": cache},
            )
            for name in LADDER
        ),
    )


def orderings() -> tuple[Ordering, ...]:
    """Each step of the ladder, and its ends, in both figures."""
    steps = [*zip(LADDER[1:], LADDER[:-1], strict=True), (LADDER[-1], LADDER[0])]
    return tuple(
        Ordering(better=better, worse=worse, metric=metric, source="Table 2")
        for metric in ("rouge_l", "kl")
        for better, worse in steps
    )


def reproduce(settings: KDSettings) -> Mapping[str, Any]:
    """Capture, train, look, judge."""
    journal = journal_of(settings)
    cache, counts = capture(
        settings,
        "attention",
        rows="response",
        attention="maps",
        attention_rows="response",
        attention_layers=tuple(map(int, settings.attention_layers)) or None,
    )
    what = Reproduction(
        name="kd_attention",
        title="KD: predictions and attention",
        settings=settings,
        ways=ways_of(cache),
        dev=dev_of(settings),
        looks=(test_of(settings),),
        orderings=orderings(),
        columns={
            "rouge_l": "ROUGE-L",
            "kl": "KL",
            "loss": "loss",
            "length": "length",
        },
        facts=lambda rows: {"capture": counts},
    )
    return carry_out(what, journal)


if __name__ == "__main__":
    run_command(KDSettings, reproduce, __doc__)
