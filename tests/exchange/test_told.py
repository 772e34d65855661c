"""Pages and commands that show an imported cache say what of it is asserted or a bound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from exchanging import brought_in
from tiny import Family, Ran

from cachekd import ExportConfig, export_cache, open_cache
from cachekd.config import EvaluateConfig
from cachekd.evaluation.notes import notes_of

SAID = "its teacher 'org/t' and its tokenizer are asserted, not known"


@pytest.fixture(scope="module")
def imported(
    captured: Path, family: Family, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Values over the whole vocabulary, and such as are normalised over the entries."""
    root = tmp_path_factory.mktemp("told")
    for values in ("logprobs", "renormalised"):
        settings: dict[str, Any] = {"cache": str(captured), "format": "axolotl", "values": values}
        export_cache(ExportConfig(out=str(root / f"{values}-out"), **settings))
        brought_in(root / f"{values}-out", family, root / values, format="axolotl")
    return {values: root / values for values in ("logprobs", "renormalised")}


@pytest.mark.parametrize("values", ["logprobs", "renormalised"])
def test_the_page_of_a_cache(
    values: str, imported: dict[str, Path], cachekd: Callable[..., Ran], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    report = cachekd("report", imported[values], "--out", page, "--json")
    assert report.code == 0, report.err
    tail = "derived" if values == "logprobs" else "unknown (renormalised)"
    assert report.json["about"]["imported"]["tail"] == tail
    text = page.read_text().replace("&#x27;", "'").replace("&#39;", "'")
    assert SAID in text and f"Tail mass: {tail}" in text
    assert "lower bound: of the entries and the tail as one" in text
    assert "bound where it is no entry: the least that it can be" in text


def test_a_page_of_a_capture_says_nothing_of_it(
    captured: Path, cachekd: Callable[..., Ran], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    assert cachekd("report", captured, "--out", page).code == 0
    assert "imported" not in page.read_text() and "asserted" not in page.read_text()
    assert "imported" not in cachekd("inspect", captured, "--record", 0).out


def test_inspect_says_it_of_the_cache_and_of_a_record(
    imported: dict[str, Path], cachekd: Callable[..., Ran]
) -> None:
    for flags in ((), ("--record", 0)):
        shown = cachekd("inspect", imported["logprobs"], *flags, "--json").json
        assert shown["identity"] == "asserted, not known"
        assert shown["imported"]["next_logprob"] == "bound where it is no entry"


def test_evaluations_against_it_say_it(imported: dict[str, Path], captured: Path) -> None:
    for cache, count in ((imported["logprobs"], 1), (captured, 0)):
        config = EvaluateConfig(model=("m",), data=("d",), cache=str(cache))
        made: Any = SimpleNamespace(candidates=[], cache=open_cache(str(cache)))
        assert sum(SAID in note for note in notes_of(made, config)) == count
