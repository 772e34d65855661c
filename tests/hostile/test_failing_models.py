"""A model that fails while it is evaluated: named, and no loss to the others."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Family, Ran, write_rows

Run = Callable[..., Ran]
GOOD = {"instruction": "say it", "output": "it"}


@pytest.fixture
def sick(family: Family, tmp_path: Path) -> Path:
    """A model that gives NaN."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(family.student, tmp_path / "sick"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def failing(
    cachekd: Run,
    family: Family,
    tmp_path: Path,
    model: Path,
    *further: object,
    others: tuple[object, ...] | None = None,
) -> Ran:
    """One model that fails, beside one that does not unless others are given."""
    rows = [{**GOOD, "output": word} for word in ("it", "no")]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    flags = ("--model", model, "--data", data, "--seeds", 1, "--max-new-tokens", 3)
    beside = ("--model", family.student) if others is None else others
    labels = ("--label-words", "it", "--label-words", "no", "--teacher", family.teacher)
    lengths = ("--exaccerr-lengths", 2)
    return cachekd("evaluate", *flags, *beside, *labels, *lengths, *further)


def test_a_model_that_fails_keeps_the_others(
    cachekd: Run, family: Family, sick: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    ran = failing(cachekd, family, tmp_path, sick, "--out", page, "--json")
    assert ran.code == 1 and "cachekd: model sick gave logits that are NaN" in ran.err
    first, second = ran.json["models"]
    assert first["failed"] in ran.err and second["failed"] is None
    assert first["metrics"].keys() == second["metrics"].keys()
    for figure in first["metrics"].values():
        assert figure["mean"] is None and figure["why"] == first["failed"]
    assert second["metrics"]["loss"]["mean"] > 0
    said = "sick: failed, and what is missing is not measured: model sick gave logits"
    assert said in page.read_text()
    ran = failing(cachekd, family, tmp_path, sick)
    assert ran.code == 1 and ran.out.count(said) == 1


def test_what_a_model_has_until_it_fails_is_told(
    cachekd: Run, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cachekd.evaluation import run as evaluation

    exposure = evaluation.exposure

    def short(side: Any, *further: Any) -> Any:
        if side.name == "model again":
            raise MemoryError("no room")
        return exposure(side, *further)

    load, held = evaluation.load, []

    def watched(found: Any) -> Any:
        model = load(found)
        if found.name != "the teacher":
            assert all(reference() is None for reference in held), "the one that failed is held"
            held.append(weakref.ref(model))
        return model

    monkeypatch.setattr(evaluation, "load", watched)
    monkeypatch.setattr(evaluation, "exposure", short)
    again = Path(shutil.copytree(family.student, tmp_path / "again"))
    ran = failing(cachekd, family, tmp_path, again, "--json")
    assert ran.code == 1 and f"cachekd: model again ({again}): out of memory" in ran.err
    first, second = (model["metrics"] for model in ran.json["models"])
    assert first["rouge_l"] == second["rouge_l"] and first["loss"] == second["loss"]
    assert "no room" in first["exaccerr_2"]["why"] and "no room" in first["ece"]["why"]


def test_a_model_that_cannot_be_loaded_keeps_the_others(
    cachekd: Run, family: Family, sick: Path, tmp_path: Path
) -> None:
    (sick / "model.safetensors").write_bytes(b"not weights")
    ran = failing(cachekd, family, tmp_path, sick, "--json")
    assert ran.code == 1 and "cachekd: model sick (" in ran.err
    assert "cannot be loaded" in ran.json["models"][0]["failed"]
    assert ran.json["models"][1]["metrics"]["ece"]["mean"] is not None


def test_nan_of_the_only_model_is_an_error(
    cachekd: Run, sick: Path, family: Family, tmp_path: Path
) -> None:
    ran = failing(cachekd, family, tmp_path, sick, "--json", others=())
    assert ran.code == 1 and ran.out == "" and "Traceback" not in ran.err
    assert "model sick gave logits that are NaN" in " ".join(ran.err.split())
