"""The page of an evaluation in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import DESKTOP, NO_CHROMIUM, PHONE, can_browse, look
from tiny import Family, write_rows

import cachekd as package
from cachekd.config import EvaluateConfig


@pytest.mark.skipif(not can_browse(), reason=NO_CHROMIUM)
def test_its_figures_are_drawn_and_nothing_is_asked_for(family: Family, tmp_path: Path) -> None:
    rows = [
        {"instruction": f"say {n}", "output": "it", "truth": ("yes<b>", "no<b>")[n % 2]}
        for n in range(6)
    ]
    page = tmp_path / "page.html"
    config = EvaluateConfig(
        model=(f"one={family.student}", f"two={family.student}", str(family.teacher)),
        data=(str(write_rows(tmp_path / "d.jsonl", rows)),),
        teacher=str(family.teacher),
        seeds=(1, 2),
        max_new_tokens=8,
        exaccerr_lengths=(2, 4),
        label_words=("no<b>", "yes<b>"),
        label_column="truth",
        out=str(page),
    )
    package.evaluate(config)
    (tmp_path / "browser").mkdir()
    (seen,) = look([page], tmp_path / "browser").values()
    assert {figure.title for figure in seen.figures} == {
        "ROUGE-L, mean ± deviation over seeds",
        "ExAccErr by response length, all seeds together",
        "Responses that are not over",
        "Reliability: accuracy against confidence, ten bins",
    }
    assert all(figure.drawn for figure in seen.figures)
    assert not seen.errors and not seen.requests
    assert seen.beyond == {PHONE: 0, DESKTOP: 0}
