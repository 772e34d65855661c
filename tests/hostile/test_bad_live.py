"""Bad input to on-policy runs: refused before a weight is loaded, or named when it comes up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Family, Ran, chat_rows, save_model, save_tokenizer, write_rows

Run = Callable[..., Ran]
Refused = Callable[..., str]


@pytest.fixture
def refused(
    cachekd: Run, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Refused:
    """Runs an on-policy train, expects a refusal with this exit code, and gives its message."""
    data = write_rows(tmp_path / "data.jsonl", chat_rows(8))

    def run(
        *further: object, code: int, objective: str = "gkd", loads: bool = False, **replaced: object
    ) -> str:
        from cachekd.training import student as training

        if not loads:
            monkeypatch.setattr(training, "load_student", lambda *a: pytest.fail("loaded"))
        options: dict[str, object] = {
            "objective": objective,
            "data": data,
            "teacher": family.teacher,
            "student": family.student,
            "output-dir": tmp_path / "out",
            "max-new-tokens": 6,
            **{name.replace("_", "-"): value for name, value in replaced.items()},
        }
        flags = [
            part
            for name, value in options.items()
            if value is not None
            for part in (f"--{name}", value)
        ]
        ran = cachekd("train", *flags, "--max-steps", 2, "--use-cpu", "true", *further)
        assert ran.code == code, ran.err
        assert "Traceback" not in ran.err
        assert loads or not (tmp_path / "out").exists()
        return " ".join(ran.err.split())

    return run


@pytest.fixture
def changed(family: Family, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a model of the family with one of its tensors replaced."""

    def change(source: Path, name: str, value: Callable[[Any], Any]) -> Path:
        from safetensors.torch import load_file, save_file

        folder = Path(shutil.copytree(source, tmp_path / "changed"))
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = value(tensors[name].clone())
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return change


def test_another_vocabulary(refused: Refused, tmp_path: Path) -> None:
    other = tmp_path / "other"
    vocab = save_tokenizer(other)
    save_model(other, vocab, width=16, layers=1, seed=3)
    path = other / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    path.write_text(json.dumps(content))
    err = refused(code=5, teacher=other)
    assert "the student" in err and "the live teacher" in err and "of one tokenizer" in err


@pytest.mark.parametrize(
    ("replaced", "further", "said"),
    [
        ({"objective": "sft", "max_new_tokens": None}, (), "train from caches|trains from caches"),
        ({"teacher": None}, (), "a live teacher"),
        ({"data": None}, (), "expected at least one cache"),
        ({"teacher_url": "http://127.0.0.1:1"}, (), "exclude each other"),
        ({"lm_data": "x.jsonl"}, (), "beside the student's own"),
        ({"on_long": "split"}, (), "expected fail or skip"),
        ({"tail": "unigram"}, (), "no mean distribution"),
        ({}, ("--packing",), "no length before they are written"),
        ({"max_length": 16}, (), "prompt of"),
        ({"objective": "minillm", "scrg": 1}, (), "importance weights"),
        ({"objective": "minillm", "rollout_temperature": 0.7}, (), "importance weights"),
        ({"rollout_top_p": 0}, (), "0 < p <= 1"),
        ({"score_batch_tokens": 0}, (), "above 0"),
        ({"logits_top_k": -1}, (), "0 or more"),
        ({"teacher_backend": "hff"}, (), "Did you mean 'hf'"),
    ],
)
def test_settings_that_do_not_go_together(
    refused: Refused, replaced: dict[str, Any], further: tuple[str, ...], said: str
) -> None:
    import re

    code = 1 if "max_length" in replaced else 2
    assert re.search(said, refused(*further, code=code, **replaced))


def test_a_flag_about_a_teacher_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    err = refused(
        code=2,
        objective="sft",
        teacher=None,
        max_new_tokens=None,
        teacher_timeout=3,
        cache=tmp_path / "c",
    )
    assert "teacher_timeout" in err and "--teacher" in err


def test_a_server_that_is_down(refused: Refused) -> None:
    err = refused(code=1, teacher=None, teacher_url="http://127.0.0.1:9", teacher_patience=0.2)
    assert "http://127.0.0.1:9" in err and "cachekd serve-teacher" in err


def test_no_prompts_in_the_data(refused: Refused, tmp_path: Path) -> None:
    text = write_rows(tmp_path / "text.jsonl", [{"text": "the cat sleeps"}] * 4)
    assert "none has a prompt" in refused(code=2, data=text)


def test_a_collection_that_is_no_whole_batches(refused: Refused) -> None:
    err = refused("--collect", 12, code=2, objective="minillm", loads=True)
    assert "multiple of 8" in err


def test_a_place_that_holds_another_cache(
    refused: Refused, cachekd: Run, family: Family, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "other.jsonl", chat_rows(4))
    made = cachekd(
        "precompute", "--teacher", family.student, "--data", data, "--cache", tmp_path / "c"
    )
    assert made.code == 0, made.err
    err = refused(code=5, keep_rollouts=tmp_path / "c")
    assert "keep_rollouts" in err and "differ" in err


def test_scores_live_in_folders(refused: Refused) -> None:
    err = refused(code=2, score_cache="memory://scores", loads=True)
    assert "score" in err and "local" in err


def test_a_teacher_of_nan(
    refused: Refused, family: Family, changed: Callable[..., Path], tmp_path: Path
) -> None:
    bad = changed(family.teacher, "model.norm.weight", lambda value: value * float("nan"))
    err = refused(code=1, teacher=bad, loads=True, lmbda=1)
    assert "NaN" in err and "teacher" in err
    err = refused(
        code=1, objective="minillm", teacher=bad, loads=True, collect=8, output_dir=tmp_path / "o2"
    )
    assert "gave logits that are NaN" in err


@pytest.fixture
def silent(family: Family, tmp_path: Path) -> Path:
    """A student that answers with the end token and nothing else."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(family.student, tmp_path / "silent"))
    tensors = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            value.zero_()  # the residual stream is the embedding alone
    tensors["model.embed_tokens.weight"].fill_(1.0)
    tensors["lm_head.weight"].fill_(-1.0)
    tensors["lm_head.weight"][0] = 10.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("minillm", {"collect": 8, "teacher_mix": 0.0}),
        ("multi_granularity", {"scrg": 0, "chunker": "adjacent"}),
        ("distillm", {"lmbda": 1.0, "replay": 8}),
    ],
)
def test_students_that_say_nothing(
    family: Family, silent: Path, tmp_path: Path, objective: str, options: dict[str, Any]
) -> None:
    """Every response is the end token alone: one row each, which is trained like any other."""
    from cachekd import TrainConfig, train

    training = {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1}
    report = train(
        TrainConfig(
            objective=objective,
            objective_options={"max_new_tokens": 6, **options},
            data=(str(write_rows(tmp_path / "data.jsonl", chat_rows(8))),),
            teacher=str(family.teacher),
            student=str(silent),
            output_dir=str(tmp_path / "out"),
            training={**training, "use_cpu": True, "disable_tqdm": True},
        )
    )
    rows = [row for row in report["history"] if "rollout_length" in row]
    assert rows[0]["rollout_length"] == 1 and rows[0]["rollout_ended"] == 1
    assert all(row["loss"] == row["loss"] for row in report["history"] if "loss" in row)
