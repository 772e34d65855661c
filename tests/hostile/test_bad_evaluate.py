"""Bad input to ``cachekd evaluate``: refused before a weight is loaded wherever that can be."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Family, Ran, chat_rows, save_model, save_tokenizer, write_rows

Run = Callable[..., Ran]
Refused = Callable[..., str]
GOOD = {"instruction": "say it", "output": "it"}


def flags_of(options: dict[str, object]) -> list[object]:
    return [
        part
        for name, value in options.items()
        if value is not None
        for part in (f"--{name.replace('_', '-')}", value)
    ]


@pytest.fixture
def refused(
    cachekd: Run, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Refused:
    """Runs evaluate, expects a refusal with this exit code, and gives its message."""
    data = write_rows(tmp_path / "data.jsonl", chat_rows(4))

    def run(*further: object, code: int, loads: bool = False, **replaced: object) -> str:
        from cachekd.evaluation import run as evaluation

        if not loads:
            monkeypatch.setattr(evaluation, "load", lambda *_: pytest.fail("a model was loaded"))
        options: dict[str, object] = {
            "model": family.student,
            "data": data,
            "seeds": "1",
            "max_new_tokens": 4,
            **replaced,
        }
        ran = cachekd("evaluate", *flags_of(options), *further, "--json")
        assert ran.code == code, ran.err
        assert "Traceback" not in ran.err and ran.out == ""
        return " ".join(ran.err.split())

    return run


@pytest.mark.parametrize(
    ("replaced", "further", "said"),
    [
        ({"seeds": "1,1"}, (), "different seeds"),
        ({"seeds": "1.5"}, (), "whole numbers"),
        ({"seeds": "-1"}, (), "0 up to"),
        ({"temperature": 0}, (), "use --greedy"),
        ({"top_p": 1.5}, (), "0 < p <= 1"),
        ({"max_new_tokens": 0}, (), "1 or more"),
        ({"max_samples": -1}, (), "max_samples: expected 1 or more"),
        ({"no_repeat_ngram_size": -1}, (), "0 or more"),
        ({"temperature": 0.5, "seeds": None}, ("--greedy",), "does nothing with --greedy"),
        ({}, ("--greedy",), "seeds: it does nothing"),
        ({"teacher_dtype": "float16"}, (), "does nothing without --teacher"),
        ({"exaccerr_lengths": "8,4"}, (), "ascending"),
        ({"label_column": "x"}, (), "does nothing without --label-words"),
        ({"label_words": "yes"}, (), "two or more different words"),
        ({"label_words": " "}, (), "found an empty one"),
        ({}, ("--label-words", "yes", "--label-words", "yes "), "two or more different words"),
        ({"preset": "papers"}, (), "paper"),
        ({"model": None}, (), "--model is required"),
        ({"data": None}, (), "--data is required"),
    ],
)
def test_settings_that_cannot_be(
    refused: Refused, replaced: dict[str, Any], further: tuple[str, ...], said: str
) -> None:
    assert re.search(said, refused(*further, code=2, **replaced))


def test_two_models_of_one_name(refused: Refused, family: Family) -> None:
    err = refused("--model", f"student={family.teacher}", code=2)
    assert "2 models are called 'student'" in err and "NAME=PATH" in err


def test_a_model_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    assert "no such model" in refused(code=1, model=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(code=1, model=tmp_path / "empty")


def test_an_adapter_without_a_base(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "names no base model" in refused(code=1, model=tmp_path / "adapter")


@pytest.mark.parametrize(
    ("row", "further", "said"),
    [
        ({"instruction": "i", "output": []}, (), "row 1: empty text: output is an empty list"),
        ({"instruction": "i", "output": ""}, (), "row 1: empty text: output is empty"),
        ({"instruction": "i"}, (), "row 1: missing column"),
        ({"text": "only text"}, (), "row 1: no prompt"),
        ({**GOOD, "output": "maybe"}, ("--label-words", "it", "--label-words", "x"), "one of it"),
    ],
)
def test_bad_rows_are_named_and_can_be_skipped(
    refused: Refused,
    tmp_path: Path,
    row: dict[str, Any],
    further: tuple[str, ...],
    said: str,
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [GOOD, row, GOOD])
    err = refused(*further, code=1, data=data)
    assert said in err and "--on-bad skip" in err


def test_skipped_rows_are_counted(cachekd: Run, family: Family, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [GOOD, {"instruction": "i", "output": ""}])
    flags = flags_of({"model": family.student, "data": data, "seeds": 1, "max_new_tokens": 3})
    ran = cachekd("evaluate", *flags, "--on-bad", "skip", "--json")
    assert ran.json["data"] == {"examples": 1, "references": 1, "skipped": {"empty text": 1}}
    assert "rows left out: empty text: 1" in cachekd("evaluate", *flags, "--on-bad", "skip").out


@pytest.mark.parametrize(
    ("rows", "replaced", "said"),
    [
        ([{"question": "q"}], {}, "expected the columns of one layout"),
        ([GOOD], {"references_column": "refs"}, "column 'refs' that references_column names"),
        (
            [GOOD, {**GOOD, "refs": ["a"]}],
            {"references_column": "refs"},
            "column 'refs' that references_column names",
        ),
    ],
)
def test_no_column_of_references(
    refused: Refused, tmp_path: Path, rows: list[Any], replaced: dict[str, Any], said: str
) -> None:
    err = refused(code=1, data=write_rows(tmp_path / "rows.jsonl", rows), **replaced)
    assert said in err and "found: " in err


def test_a_prompt_that_leaves_no_room(refused: Refused, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [GOOD, {"instruction": "cat " * 90, "output": "x"}])
    err = refused(code=2, data=data, max_new_tokens=60)
    assert "context of 128" in err and "rows.jsonl row 1" in err and "--max-prompt-length" in err


def test_label_words_of_which_one_begins_the_other(refused: Refused, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"instruction": "i", "output": "q"}])
    err = refused("--label-words", "q", "--label-words", "qz", code=2, data=data)
    assert "the tokens of 'q' are how those of 'qz' begin" in err


def test_prompts_that_are_cut_are_counted(cachekd: Run, family: Family, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [GOOD, {"instruction": "cat " * 90, "output": "x"}])
    flags = flags_of({"model": family.student, "data": data, "seeds": 1, "max_new_tokens": 3})
    found = {}
    for side in ("left", "right"):
        further = ("--max-prompt-length", 20, "--truncation-side", side)
        report = cachekd("evaluate", *flags, *further, "--json").json
        assert report["models"][0]["prompts_cut"] == 1
        found[side] = report["models"][0]["metrics"]["loss"]["mean"]
    assert found["left"] != found["right"]
    assert (
        "student: prompts that lost their end, at 20 tokens: 1"
        in cachekd("evaluate", *flags, *further).out
    )


def other_tokenizer(folder: Path) -> Path:
    """A model whose tokenizer merges less."""
    save_model(folder, save_tokenizer(folder), width=16, layers=1, seed=3)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:-40]
    path.write_text(json.dumps(content))
    return folder


def test_a_teacher_of_another_tokenizer(refused: Refused, tmp_path: Path) -> None:
    other = other_tokenizer(tmp_path / "other")
    err = refused(code=5, teacher=other)
    assert "the model student" in err and "the teacher" in err and "cannot be compared" in err


def test_models_of_different_tokenizers_need_no_teacher(
    cachekd: Run, family: Family, tmp_path: Path
) -> None:
    other = other_tokenizer(tmp_path / "other")
    data = write_rows(tmp_path / "rows.jsonl", chat_rows(3))
    flags = flags_of({"model": family.student, "data": data, "seeds": 1, "max_new_tokens": 3})
    report = cachekd("evaluate", *flags, "--model", other, "--json").json
    first, second = report["models"]
    assert first["tokenizer"] != second["tokenizer"]
    assert all(model["metrics"]["loss"]["mean"] > 0 for model in (first, second))


def test_a_cache_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    assert "no cache" in refused(code=1, cache=tmp_path / "nowhere").lower()


def test_a_model_that_does_not_fit(
    refused: Refused, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cachekd.evaluation import models

    def full(*_: object) -> None:
        raise MemoryError("no room for 1 TB")

    monkeypatch.setattr(models, "load_model", full)
    err = refused(code=1, loads=True, teacher=family.teacher)
    assert "teacher (" in err and "does not fit: out of memory: no room for 1 TB" in err
    assert "model student" in refused(code=1, loads=True)


def test_weights_that_are_missing(refused: Refused, family: Family, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(family.student, tmp_path / "part"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    err = refused(code=1, loads=True, model=folder)
    assert "model part" in err and "model.norm.weight" in err


def test_a_page_that_cannot_be_written(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "out: cannot write to" in refused(code=2, out=tmp_path / "file" / "page.html")
    assert "is a folder" in refused(code=2, markdown=tmp_path)
