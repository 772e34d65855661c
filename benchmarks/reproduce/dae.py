"""Domain alignment from an expert (DAE) against plain fine-tuning on the domain.

"A Teacher Is Worth A Million Instructions", section 2.2, Eq. 6, and Table 1: the domain's figure
rises and the general one does not fall. First a general student is made by distillation from a
general teacher. Then it learns the domain in three ways: cross entropy on the domain's text alone
(which forgets), KD from the expert on that text alone, and DAE, whose other samples hold the
student to what it was. The paper has one domain sample in ten; here it is ``samples`` to
``general_samples``.

    python benchmarks/reproduce/dae.py --teacher EXPERT --general-teacher T --student S \
        --data DOMAIN.jsonl --dev-data DOMAIN_DEV.jsonl --test-data DOMAIN_TEST.jsonl \
        --general-data GENERAL.jsonl --general-test-data GENERAL_TEST.jsonl --work WORK

Where a GPU is: --config benchmarks/reproduce/dae.yaml --work WORK.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from carry_out import Reproduction, carry_out, journal_of
from journal import Journal
from measure import HeldOut, dev_of, test_of
from orderings import Ordering
from settings import Settings, run_command
from ways import Way, capture, trained

from cachekd.config import DataConfig, option, required
from cachekd.data.sources import read_rows

DOMAIN = "domain"


@dataclass(frozen=True, kw_only=True)
class DAESettings(Settings):
    """Settings, and the general side; ``teacher`` is the expert, ``data`` the domain."""

    general_teacher: str = required("Teacher of the general student.", group="Models")
    general_data: tuple[str, ...] = required("General training data.", group="Data")
    general_test_data: tuple[str, ...] = required("General held-out data.", group="Data")
    general_split: str = option("train", "Split of --general-data.", group="Data")
    general_test_split: str = option("test", "Split of --general-test-data.", group="Data")
    general_columns: Mapping[str, str] = option({}, "Columns of both.", group="Data")
    general_samples: int = option(900, "General training rows.", group="Sizes")
    general_steps: int = option(150, "Updates of the general student.", group="Sizes")
    general_learning_rate: float = option(1e-3, "Its learning rate.", group="Sizes")
    tolerance: float = option(0.01, "Share by which a general figure may fall.", group="Sizes")


def general_student(settings: DAESettings, journal: Journal) -> str:
    """The student that all ways start from, distilled from the general teacher."""
    cache, _ = capture(
        settings, "general", teacher=settings.general_teacher, **_general(settings), rows="response"
    )
    way = Way(
        name="general student",
        family="general",
        objective="kd",
        options={"loss": {"kd": 1.0}},
        caches={"train": cache},
    )
    sizes = replace(settings, steps=settings.general_steps)
    folder, told = trained(sizes, way, settings.seeds[0], settings.general_learning_rate)
    if journal.find("general student") is None:
        journal.add("general student", **told)
    return str(folder)


def _general(settings: DAESettings) -> dict[str, Any]:
    return {
        "data": settings.general_data,
        "split": settings.general_split,
        "columns": settings.general_columns,
        "max_samples": settings.general_samples,
    }


def labelled(settings: DAESettings) -> str:
    """The domain's rows with a label, by which samples find their teacher."""
    path = Path(settings.work) / "domain.jsonl"
    rows = read_rows(
        DataConfig(data=settings.data, split=settings.split, max_samples=settings.samples)
    )
    lines = [json.dumps({**row, DOMAIN: DOMAIN}, default=str) for _, _, row in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def ways_of(settings: DAESettings, student: str) -> tuple[Way, ...]:
    """The general student as it is, and three ways to the domain."""
    expert, _ = capture(
        settings, "expert", data=(labelled(settings),), domain_column=DOMAIN, rows="response"
    )
    reference, _ = capture(
        settings, "reference", teacher=student, **_general(settings), rows="response"
    )
    alone = {"expert": expert}
    return (
        Way(name="start", family="start", objective=None, student=student),
        Way(name="domain SFT", family="SFT", objective="sft", caches=alone, student=student),
        Way(
            name="domain KD",
            family="KD",
            objective="kd",
            options={"loss": {"kd": 1.0}},
            caches=alone,
            student=student,
        ),
        Way(
            name="DAE",
            family="DAE",
            objective="dae",
            caches={"expert": expert, "reference": reference},
            student=student,
        ),
    )


def orderings(tolerance: float) -> tuple[Ordering, ...]:
    """Up in the domain, not down elsewhere; and what plain fine-tuning forgets."""
    up = [("DAE", "start", f"domain {metric}", "better") for metric in ("rouge_l", "kl", "loss")]
    held = [("DAE", "start", f"general {metric}", "not worse") for metric in ("rouge_l", "loss")]
    lost = [("start", "domain SFT", f"general {m}", "better") for m in ("rouge_l", "loss", "kl")]
    kept = [
        ("DAE", other, f"general {metric}", "better")
        for other in ("domain SFT", "domain KD")
        for metric in ("rouge_l", "loss", "kl")
    ]
    return tuple(
        Ordering(
            better=better,
            worse=worse,
            metric=metric,
            source="Table 1",
            rule=rule,
            tolerance=tolerance if rule == "not worse" else 0.0,
        )
        for better, worse, metric, rule in (*up, *held, *lost, *kept)
    )


def reproduce(settings: DAESettings) -> Mapping[str, Any]:
    """Make the general student, capture, train, look, judge."""
    journal = journal_of(settings)
    general = HeldOut(
        name="general",
        data=settings.general_test_data,
        split=settings.general_test_split,
        columns=settings.general_columns,
        teacher=settings.general_teacher,
    )
    shown = {"rouge_l": "ROUGE-L", "loss": "loss", "kl": "KL"}
    what = Reproduction(
        name="dae",
        title="DAE: a domain without forgetting",
        settings=settings,
        ways=ways_of(settings, general_student(settings, journal)),
        dev=dev_of(settings),
        looks=(replace(test_of(settings), name="domain"), general),
        orderings=orderings(settings.tolerance),
        columns={f"{at} {k}": f"{at} {v}" for at in (DOMAIN, "general") for k, v in shown.items()},
        facts=lambda rows: {"general_student": journal.find("general student")},
    )
    return carry_out(what, journal)


if __name__ == "__main__":
    run_command(DAESettings, reproduce, __doc__)
