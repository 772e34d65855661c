"""The ladder of "Multi-Granularity Semantic Revision", Table 2, and its losses, Table 3c.

The ladder begins with forward KL on the student's own text and cross entropy on the data's; then
the teacher corrects that text (SCRG), DAC-KL takes the place of forward KL, and the span loss
comes in. Table 3c puts seven other divergences where the whole method has DAC-KL.

    python benchmarks/reproduce/multi_granularity.py --teacher T --student FINE_TUNED \
        --data TRAIN.jsonl --dev-data DEV.jsonl --test-data TEST.jsonl --work WORK

Where a GPU is: --config benchmarks/reproduce/multi_granularity.yaml --work WORK.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carry_out import Reproduction, carry_out, journal_of
from measure import dev_of, test_of
from orderings import Ordering
from settings import Settings, run_command
from ways import Way

LADDER: dict[str, tuple[tuple[str, ...], int]] = {
    "base": (("sft", "kd"), 0),
    "+ SCRG": (("sft", "kd"), 1),
    "+ DAC-KL": (("sft", "dac_kl"), 1),
    "+ span loss": (("sft", "dac_kl", "span"), 1),
}
"""Of each row its terms, all of weight 1, and corrections of a sequence."""
LOSSES = {
    "forward KL": "kd",
    "reverse KL": "reverse_kl",
    "symmetric KL": "symmetric",
    "JSD": "jsd",
    "TVD": "tvd",
    "skew reverse KL": "skew_reverse_kl",
    "skew forward KL": "skew_kl",
}
"""Divergences of Table 3c by the name of their term."""
WHOLE = "+ span loss"


def ways_of() -> tuple[Way, ...]:
    """The student as it is, the ladder, and the whole method with other divergences."""
    rows = {**LADDER, **{name: (("sft", term, "span"), 1) for name, term in LOSSES.items()}}
    return (
        Way(name="start", family="start", objective=None),
        *(
            Way(
                name=name,
                family="ladder" if name in LADDER else "losses",
                objective="multi_granularity",
                options={"loss": dict.fromkeys(terms, 1.0), "scrg": corrections},
            )
            for name, (terms, corrections) in rows.items()
        ),
    )


def orderings() -> tuple[Ordering, ...]:
    """Each step of the ladder, and DAC-KL above every other divergence."""
    names = list(LADDER)
    steps = [*zip(names[1:], names[:-1], strict=True), (names[-1], names[0])]
    pairs = [(*step, "Table 2") for step in steps]
    pairs += [(WHOLE, name, "Table 3c") for name in LOSSES]
    return tuple(
        Ordering(better=better, worse=worse, metric="rouge_l", source=source)
        for better, worse, source in pairs
    )


def reproduce(settings: Settings) -> Mapping[str, Any]:
    """Train, look, judge; the teacher is live in every way."""
    what = Reproduction(
        name="multi_granularity",
        title="Multi-granularity revision",
        settings=settings,
        ways=ways_of(),
        dev=dev_of(settings),
        looks=(test_of(settings, own_text=True),),
        orderings=orderings(),
        columns={
            "rouge_l": "ROUGE-L",
            "kl": "KL",
            "sequence_reverse_kl": "sequence reverse KL",
            "loss": "loss",
            "distinct_4": "distinct-4",
            "length": "length",
        },
    )
    return carry_out(what, journal_of(settings))


if __name__ == "__main__":
    run_command(Settings, reproduce, __doc__)
