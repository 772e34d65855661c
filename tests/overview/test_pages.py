"""All pages in a real browser: figures are drawn, no script fails, nothing is asked for outside."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

import comparing
import pytest
from browser import DESKTOP, NO_CHROMIUM, PHONE, Seen, can_browse, look, print_page
from overview_cases import CAPTURE, HOSTILE, TEXTS
from runs import capture
from tiny import Family, write_rows

from cachekd import evaluate
from cachekd.config import EvaluateConfig, PlanConfig, RecheckConfig, ReportConfig
from cachekd.overview import make_report
from cachekd.report.bars import Bars, Histogram
from cachekd.report.curves import Section, Table, write_page
from cachekd.report.figures import Figure
from cachekd.report.heat import Passage
from cachekd.report.svg import Plot

pytestmark = pytest.mark.skipif(not can_browse(), reason=NO_CHROMIUM)
BAD = {
    "script": "<script>undefinedFunction()</script>",
    "image": '<img alt="" src="https://outside.invalid/picture.png">',
    "style": '<link rel="stylesheet" href="http://outside.invalid/style.css">',
    "wide": '<div style="width: 500px">wide</div>',
    "undrawn": '<figure><svg aria-label="t"><text>x</text></svg></figure>',
}
PAGES = (
    *("cache", "hostile", "runs", "training", "plan", "benchmark", "evaluation", "demo", "long"),
)


@pytest.fixture(scope="module")
def pages(
    captured: Path,
    runs: tuple[Path, ...],
    family: Family,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Every kind of page, as its command writes it."""
    from cachekd.costs import plan
    from cachekd.demo.page import write_report

    folder = tmp_path_factory.mktemp("pages")
    paths = {name: folder / f"{name} & page.html" for name in PAGES}
    teacher = RecheckConfig(teacher=str(family.teacher), backend="dummy")
    make_report(
        ReportConfig(
            paths=(str(captured),), out=str(paths["cache"]), recheck=teacher, teacher_sample=4
        )
    )
    _hostile(family, folder, paths["hostile"])
    _benchmark(paths["benchmark"])
    _evaluation(family, captured.parent / "data.jsonl", paths["evaluation"])
    make_report(ReportConfig(paths=tuple(map(str, runs)), out=str(paths["runs"])))
    paths["training"] = runs[0] / "report.html"
    data = captured.parent / "data.jsonl"
    settings = {"backend": "dummy", "samples": 8, "out": str(paths["plan"])}
    plan(PlanConfig(teacher=str(family.teacher), data=(str(data),), **settings))
    write_report(paths["demo"], _demo())
    _long(paths["long"])
    return paths


def _hostile(family: Family, folder: Path, out: Path) -> None:
    """The page of a cache that holds nothing but text that acts."""
    rows = [{"instruction": "say", "output": text, "domain": text} for text in TEXTS]
    data = write_rows(folder / "hostile.jsonl", rows)
    capture(family, data, folder / HOSTILE.replace("/", ""), domain_column="domain", **CAPTURE)
    cache = str(folder / HOSTILE.replace("/", ""))
    make_report(ReportConfig(paths=(cache,), out=str(out), tokenizer=str(family.teacher)))


def _benchmark(out: Path) -> None:
    from cachekd.costs.comparison.ledger import report_of
    from cachekd.costs.comparison.page import write_outputs

    settings = comparing.config(out=str(out))
    write_outputs(settings, report_of(comparing.measures(config=settings)))


def _evaluation(family: Family, data: Path, out: Path) -> None:
    evaluate(
        EvaluateConfig(
            model=(f"small={family.student}", f"large={family.teacher}"),
            data=(str(data),),
            teacher=str(family.teacher),
            max_samples=4,
            seeds=(10, 20),
            max_new_tokens=4,
            exaccerr_lengths=(2, 4),
            out=str(out),
        )
    )


def _long(out: Path) -> None:
    """Names without a place to break them, and more series than there are looks."""
    name = "x" * 300
    series = tuple((name, [0, 1], [i, i + 1]) for i in range(10))
    figures: list[Figure] = [
        Plot(title=name, x_label=name, y_label=name, series=series),
        Bars(title=name, x_label=name, groups=(name,) * 3, series=((name, [1.0, 2, 3], None),)),
        Histogram(title=name, x_label=name, y_label=name, edges=[0, 1e9], counts=[1e12]),
    ]
    table = Table(title=name, header=(name, name), rows=((name, "1" * 300),))
    passage = Passage(title=name, tokens=(name,), shades=(1.0,), notes=(name,))
    section = Section(heading=name, text=[name], passages=[passage], shades=(name, name))
    write_page(out, title=name, intro=[name], tables=[table], plots=figures, sections=[section])


def _demo() -> dict[str, Any]:
    history = [{"step": i, "ce": 5.0 - i, "eval_kl": 2.0 / i, "eval_ce": 4.0 - i} for i in (1, 2)]
    run = {"history": history, "final": {"eval_kl": 1.0, "eval_ce": 3.0}}
    told = {"steps": 2, "seed": 0, "seconds": 1.0, "teacher": {"ce": 2.0, "rows": 10}}
    return {**told, "runs": {"text only": run, "distilled": run}}


@pytest.fixture(scope="module")
def seen(pages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    shown = look(list(pages.values()), tmp_path_factory.mktemp("browser"))
    return {name: shown[path] for name, path in pages.items()}


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """Pages with a fault each: what does not see them proves nothing."""
    folder = tmp_path_factory.mktemp("bad")
    paths = {name: folder / f"{name}.html" for name in BAD}
    for name, path in paths.items():
        path.write_text(f"<!doctype html><title>{name}</title><body>{BAD[name]}</body>")
    shown = look(list(paths.values()), tmp_path_factory.mktemp("bad-browser"))
    return {name: shown[path] for name, path in paths.items()}


def test_the_harness_sees_a_script_error(bad: dict[str, Seen]) -> None:
    assert any("undefinedFunction" in error for error in bad["script"].errors)
    assert not bad["wide"].errors


def test_the_harness_sees_requests(bad: dict[str, Seen]) -> None:
    assert "https://outside.invalid/picture.png" in bad["image"].requests
    assert "http://outside.invalid/style.css" in bad["style"].requests


def test_the_harness_sees_what_is_too_wide_and_what_is_not_drawn(bad: dict[str, Seen]) -> None:
    assert bad["wide"].beyond[PHONE] > 100 and bad["wide"].beyond[DESKTOP] <= 0
    assert [figure.drawn for figure in bad["undrawn"].figures] == [0]


@pytest.mark.parametrize("name", PAGES)
def test_every_figure_is_drawn_and_named(seen: dict[str, Seen], name: str) -> None:
    figures = seen[name].figures
    assert figures
    for figure in figures:
        assert figure.drawn > 0 and figure.title and figure.label == figure.title


@pytest.mark.parametrize("name", PAGES)
def test_no_script_fails_and_no_request_leaves_the_page(seen: dict[str, Seen], name: str) -> None:
    assert not seen[name].errors
    assert not seen[name].requests
    assert not re.search(r"<(script|link|iframe|img|object|embed)\b", seen[name].dom)


@pytest.mark.parametrize("name", PAGES)
def test_no_page_is_wider_than_its_window(seen: dict[str, Seen], name: str) -> None:
    assert set(seen[name].beyond) == {PHONE, DESKTOP}
    assert max(seen[name].beyond.values()) <= 0


def test_hostile_tokens_and_names_are_text(seen: dict[str, Seen]) -> None:
    dom, text = seen["hostile"].dom, re.sub("<[^>]*>", "", seen["hostile"].dom)
    assert dom.count(escape(HOSTILE, quote=False)) >= 2, "a domain's name, in table and figure"
    assert text.count(escape(HOSTILE, quote=False)) >= 4, "and the text of two passages"
    assert not {"\u2028", "\u202e"} & set(dom)
    assert "⟨U+2028⟩" in text and "⟨U+202E⟩" in text and "⟨U+0000⟩" in text
    assert "שלום עולם" in text and "👩\u200d🚀" in text


def test_a_page_can_be_printed(pages: dict[str, Path], tmp_path: Path) -> None:
    pdf = print_page(pages["cache"], tmp_path / "cache.pdf", tmp_path)
    assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 2
