"""What cannot be measured is a gap with its reason, never a made-up figure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Family, Ran, chat_rows, write_rows

Run = Callable[..., Ran]
GOOD = {"instruction": "say it", "output": "it"}


@pytest.fixture
def measured(cachekd: Run, family: Family, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Evaluates on rows, and gives the metrics of the one model."""

    def run(rows: list[dict[str, Any]], *further: object, **replaced: object) -> dict[str, Any]:
        options: dict[str, object] = {
            "model": family.student,
            "data": write_rows(tmp_path / "rows.jsonl", rows),
            "seeds": "1,2",
            "max_new_tokens": 6,
            **replaced,
        }
        flags = [x for name, value in options.items() for x in (f"--{name}", value)]
        ran = cachekd("evaluate", *flags, *further, "--json")
        assert ran.code == 0, ran.err
        metrics: dict[str, Any] = ran.json["models"][0]["metrics"]
        return metrics

    return run


@pytest.fixture
def silent(family: Family, tmp_path: Path) -> Path:
    """A model whose end token always wins."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(family.student, tmp_path / "silent"))
    tensors = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
            tensors[name] = torch.zeros_like(value)
        elif name.endswith("embed_tokens.weight"):
            tensors[name] = torch.ones_like(value)
    tensors["lm_head.weight"][0] = 10.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_model_that_emits_nothing(
    measured: Callable[..., dict[str, Any]], silent: Path, family: Family
) -> None:
    metrics = measured(chat_rows(3), model=silent, teacher=family.teacher, exaccerr_lengths="1,2")
    assert metrics["rouge_l"]["mean"] == 0.0 and metrics["empty_responses"]["mean"] == 3.0
    assert metrics["response_tokens"]["mean"] == 0.0 and metrics["ended"]["mean"] == 100.0
    for n in range(1, 5):
        figure = metrics[f"distinct_{n}"]
        assert figure["mean"] is None and figure["values"] == [None, None]
        assert figure["why"] == f"no response has {n} token{'s' if n > 1 else ''}"
    assert "no response has 4 tokens" in metrics["seq_rep_4"]["why"]
    assert metrics["exaccerr_2"]["mean"] is None
    assert "no response of the model has 2 tokens" in metrics["exaccerr_2"]["why"]
    assert metrics["exaccerr_2"]["parts"]["alive_student"] == [0.0, 0.0]


def test_an_infinite_error_is_a_gap(
    measured: Callable[..., dict[str, Any]],
    family: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cachekd.evaluation import run as module

    load = module.load

    def never(found: Any) -> Any:
        """The model, but that it gives one token probability 0."""
        model = load(found)
        if found.name == "student":
            model.lm_head.register_forward_hook(_without_a_token)
        return model

    monkeypatch.setattr(module, "load", never)
    page = tmp_path / "page.html"
    metrics = measured(chat_rows(3), "--out", page, teacher=family.teacher, exaccerr_lengths="2")
    figure = metrics["exaccerr_2"]
    assert figure["mean"] is None and "one is infinite" in figure["why"]
    assert figure["parts"]["student"] == [None, None] == figure["parts"]["teacher"]
    assert page.is_file() and metrics["forward_kl"]["mean"] is None


def _without_a_token(module: Any, inputs: Any, logits: Any) -> Any:
    logits = logits.clone()
    logits[..., 9] = float("-inf")
    return logits


def test_one_example_and_one_seed(measured: Callable[..., dict[str, Any]]) -> None:
    metrics = measured([GOOD], seeds="7")
    assert metrics["rouge_l"]["mean"] is not None and metrics["rouge_l"]["deviation"] is None
    assert metrics["loss"]["mean"] == pytest.approx(metrics["loss_token_mean"]["mean"])


def test_some_references_that_rouge_cannot_see_are_told(
    cachekd: Run, family: Family, tmp_path: Path
) -> None:
    rows = [GOOD, {"instruction": "i", "output": ["— …", "你好"]}, {**GOOD, "output": ["…", "it"]}]
    data, responses = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "written.jsonl"
    flags = ("--model", family.student, "--data", data, "--seeds", "1,2", "--max-new-tokens", 4)
    ran = cachekd("evaluate", *flags, "--responses", responses, "--json")
    figure = ran.json["models"][0]["metrics"]["rouge_l"]
    assert figure["mean"] is not None and figure["parts"] == {"unseen": [1, 1]}
    scores = [json.loads(line)["rouge_l"] for line in responses.read_text().splitlines()]
    assert [score is None for score in scores] == [False, True, False] * 2
    table = tmp_path / "table.md"
    said = "student: examples whose references have no word of a-z or 0-9, and count 0"
    assert said in cachekd("evaluate", *flags, "--markdown", table).out
    assert said in table.read_text()


def test_references_that_rouge_cannot_see(measured: Callable[..., dict[str, Any]]) -> None:
    metrics = measured([{"instruction": "i", "output": "— …"}])
    assert metrics["rouge_l"]["mean"] is None
    assert "ROUGE-L sees no others" in metrics["rouge_l"]["why"]
    assert metrics["loss"]["mean"] is not None
