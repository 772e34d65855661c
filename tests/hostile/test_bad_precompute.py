"""Bad input to ``cachekd precompute``: a clear error, a non-zero exit, nothing half-written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Family, Ran, chat_rows, write_rows

Run = Callable[..., Ran]


def test_no_such_teacher(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no such model" in refused(teacher=tmp_path / "nowhere")


def test_a_hub_name_out_of_reach(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "no such model: 'no-such-org/no-such-model'" in refused(
        teacher="no-such-org/no-such-model"
    )


def test_a_folder_that_is_no_model(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(teacher=tmp_path / "empty")


def test_weights_missing(
    refused: Callable[..., str], family: Family, copy_of: Callable[[Path, str], Path]
) -> None:
    folder = copy_of(family.teacher, "weightless")
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in refused(teacher=folder)


def test_tokenizer_missing(
    refused: Callable[..., str], family: Family, copy_of: Callable[[Path, str], Path]
) -> None:
    folder = copy_of(family.teacher, "mute")
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json" in refused(teacher=folder)


def test_missing_file(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "nowhere.jsonl" in refused(data=tmp_path / "nowhere.jsonl")


def test_empty_file(refused: Callable[..., str], tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert "empty.jsonl" in refused(data=empty)


def test_wrong_columns(refused: Callable[..., str], tmp_path: Path) -> None:
    file = write_rows(tmp_path / "odd.jsonl", [{"question": "a", "answer": "b"}])
    message = refused(data=file)
    assert "question" in message and "answer" in message and "--columns" in message


@pytest.mark.parametrize("row", [{"instruction": "x", "output": "  "}, {"text": ""}])
def test_a_row_with_empty_text(
    refused: Callable[..., str], tmp_path: Path, row: dict[str, Any]
) -> None:
    good = {"text": "fine words"} if "text" in row else chat_rows(1)[0]
    file = write_rows(tmp_path / "rows.jsonl", [good, good, row])
    message = refused(data=file)
    assert "rows.jsonl row 2" in message and "empty text" in message and "--on-bad skip" in message


def test_a_sample_longer_than_the_context(refused: Callable[..., str], tmp_path: Path) -> None:
    rows = [*chat_rows(2), {"instruction": "go", "output": "the red house " * 200}]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    message = refused(data=file)
    assert "rows.jsonl row 2" in message and "128" in message
    assert "truncate" in message and "split" in message and "skip" in message


def test_unknown_yaml_key(refused: Callable[..., str], tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("logits_topk: 5\n")
    message = refused("--config", config, code=2)
    assert "'logits_topk'" in message and "Did you mean 'logits_top_k'?" in message


def test_yaml_value_of_the_wrong_type(refused: Callable[..., str], tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("logits-top-k: many\n")
    assert "logits_top_k: expected int; found 'many'" in refused("--config", config, code=2)


def test_unknown_flag(refused: Callable[..., str]) -> None:
    assert "--logits-top-kk" in refused("--logits-top-kk", 5, code=2)


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--logits-top-p", 1.5, "0 < p <= 1"),
        ("--logits-top-k", -1, "0 or more"),
        ("--temperatures", "0", "above 0"),
        ("--logits-min-k", 100, "logits_min_k"),
        ("--backend", "hff", "Did you mean 'hf'?"),
        ("--max-length", 1, "max_length"),
    ],
)
def test_impossible_settings(
    refused: Callable[..., str], flag: str, value: object, words: str
) -> None:
    assert words in refused(flag, value, code=2)


def test_missing_settings_are_named(cachekd: Run) -> None:
    ran = cachekd("precompute")
    assert ran.code == 2 and "--teacher is required" in ran.err


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_nan_from_the_teacher(
    refused: Callable[..., str],
    family: Family,
    copy_of: Callable[[Path, str], Path],
    value: str,
) -> None:
    """One damaged weight makes every logit NaN: found by the trial, before anything is written."""
    from safetensors.torch import load_file, save_file

    folder = copy_of(family.teacher, "sick")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float(value)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    message = refused(teacher=folder, loads=True)
    assert "NaN or infinite logits" in message and "data.jsonl row" in message


def test_nan_later_in_the_run_keeps_what_was_committed(
    cachekd: Run, family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from cachekd.teachers import _selection

    whole, calls = _selection.pick, []

    def sick(logits_NV: torch.Tensor, *args: object) -> object:
        calls.append(1)
        return whole(logits_NV * (float("nan") if len(calls) > 8 else 1.0), *args)  # type: ignore

    monkeypatch.setattr(_selection, "pick", sick)
    flags = ["--teacher", family.teacher, "--data", data, "--cache", tmp_path / "cache"]
    flags += ["--unit-tokens", 200, "--batch-tokens", 100]
    ran = cachekd("precompute", *flags)
    assert ran.code == 1 and "NaN" in ran.err
    monkeypatch.undo()
    assert cachekd("verify", tmp_path / "cache", "--partial").code == 0
    assert not (tmp_path / "cache" / "manifest-1.json").exists()
    assert cachekd("precompute", *flags).code == 0
    assert cachekd("verify", tmp_path / "cache").code == 0


@pytest.fixture
def read_only(tmp_path: Path) -> Any:
    """A folder that this process cannot write to, also when it runs as root."""
    folder = tmp_path / "locked"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
    else:
        yield Path("/proc")


def test_read_only_folder(refused: Callable[..., str], read_only: Path) -> None:
    assert "cannot write to" in refused(cache=read_only / "cache")


def test_a_file_in_the_place_of_the_cache(refused: Callable[..., str], data: Path) -> None:
    assert "cannot write" in refused(cache=data / "cache")


def test_tokens_that_merge_across_the_border(
    refused: Callable[..., str], family: Family, tmp_path: Path
) -> None:
    """The border lies within what the tokenizer makes one token."""
    vocabulary = json.loads((family.teacher / "tokenizer.json").read_text())["model"]["vocab"]
    word = max((token[1:] for token in vocabulary if token[1:].isalpha()), key=len)
    rows = [{"prompt": f"the {word[:2]}", "completion": f"{word[2:]} waits"}]
    message = refused(data=write_rows(tmp_path / "merge.jsonl", rows))
    assert "merge" in message and "row 0" in message


def test_bad_rows_are_counted_when_skipped(cachekd: Run, family: Family, tmp_path: Path) -> None:
    rows = [*chat_rows(3), {"instruction": "x", "output": ""}, {"instruction": 5, "output": "y"}]
    rows += [{"instruction": "go", "output": "the red house " * 200}]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    flags = ["--teacher", family.teacher, "--data", file, "--cache", tmp_path / "cache"]
    ran = cachekd("precompute", *flags, "--on-bad", "skip", "--on-long", "skip", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["skipped"] == {"empty text": 1, "wrong type": 1, "too long": 1}
    shown = cachekd("inspect", tmp_path / "cache", "--json").json
    assert shown["skipped"] == {f"{k} (run 0)": v for k, v in ran.json["skipped"].items()}
    assert shown["samples"] == 3
