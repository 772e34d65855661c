"""The page of an evaluation: in a real browser, and the names of its lines."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import DESKTOP, NO_CHROMIUM, PHONE, can_browse, look
from tiny import Family, Ran, chat_rows, write_rows

import cachekd as package
from cachekd.config import EvaluateConfig
from cachekd.evaluation.page import plots
from cachekd.report.svg import Plot, line_plot

Run = Callable[..., Ran]
FLAGS = {
    "kind": "--logits-selection",
    "k": "--logits-top-k",
    "samples": "--logits-samples",
    "tau": "--logits-tau",
    "seed": "--logits-seed",
}


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
    places = [seen.dom.index(one) for one in ("2 seeds", "<svg", ">max new tokens<")]
    assert places == sorted(places), "the table, figures, and settings last"
    models = seen.dom.split(">Models</caption>")[1].split("</table>")[0]
    names = re.findall(r"<tr><td>([^<]*)</td>", models)
    assert names == ["one", "two", "teacher", "the teacher"]
    assert not seen.errors and not seen.requests
    assert seen.beyond == {PHONE: 0, DESKTOP: 0}


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        ({"kind": "top_k", "k": 8}, "at most the KL of the whole distributions"),
        ({"kind": "sampled", "samples": 8, "seed": 0}, "estimated from its draws"),
        ({"kind": "top_k+sampled", "k": 16, "tau": 0.1, "seed": 0}, "estimated from its draws"),
    ],
)
def test_the_kl_to_a_cache_is_told_by_what_it_holds(
    cachekd: Run, family: Family, tmp_path: Path, selection: dict[str, Any], said: str
) -> None:
    data, cache = write_rows(tmp_path / "d.jsonl", chat_rows(3)), tmp_path / "cache"
    flags = [x for name, value in selection.items() for x in (FLAGS[name], value)]
    of = ("--teacher", family.teacher, "--data", data, "--cache", cache)
    ran = cachekd("precompute", *of, *flags)
    assert ran.code == 0, ran.err
    page = tmp_path / "page.html"
    of = ("--model", family.student, "--data", data, "--cache", cache)
    drawn = ("--seeds", 1, "--max-new-tokens", 3)
    ran = cachekd("evaluate", *of, *drawn, "--out", page, "--json")
    assert ran.json["cache"]["selection"] == selection
    assert said in page.read_text() and "KL to the cache " in page.read_text()


def exposed(name: str, *teacher: float) -> dict[str, Any]:
    return {
        "name": name,
        "metrics": {"rouge_l": {"mean": 1.0, "deviation": None}},
        "exaccerr": {
            "student": {"accumulated": [1.0, 2.0], "alive": [1.0, 0.25]},
            "teacher": {"accumulated": [1.0, 2.0], "alive": list(teacher)},
        },
        "reliability": [{"count": 3, "confidence": 0.5, "accuracy": 0.25}],
    }


def alive(*models: dict[str, Any]) -> dict[str, Any]:
    """The series of the plot of responses that are not over, and of the diagonal, by name."""
    *_, plot, reliability = plots({"models": models})
    assert isinstance(plot, Plot) and isinstance(reliability, Plot)
    assert "Reliability" in line_plot(reliability) and "<polyline" in line_plot(plot)
    assert set(reliability.marks) == {model["name"] for model in models}
    return {name: list(ys) for name, _, ys in (*plot.series, reliability.series[-1])}


def test_a_single_model_has_no_lone_bar() -> None:
    one, two = exposed("a", 1.0, 0.75), exposed("b", 1.0, 0.5)
    titles = [[plot.title for plot in plots({"models": models})] for models in ([one], [one, two])]
    assert not [title for title in titles[0] if "ROUGE-L" in title]
    assert [title for title in titles[1] if "ROUGE-L" in title]


def test_a_model_may_be_called_like_what_no_model_is() -> None:
    series = alive(exposed("the teacher", 1.0, 0.75), exposed("calibrated", 1.0, 0.75))
    assert series == {
        "the teacher": [1.0, 0.25],
        "calibrated": [1.0, 0.25],
        "(the teacher)": [1.0, 0.75],
        "(calibrated)": [0.0, 1.0],
    }


def test_the_teachers_texts_are_told_apart_where_they_differ() -> None:
    series = alive(exposed("a", 1.0, 0.75), exposed("b", 1.0, 0.5))
    assert series["the teacher beside a"] == [1.0, 0.75]
    assert series["the teacher beside b"] == [1.0, 0.5]
    assert "the teacher" not in series and "calibrated" in series
