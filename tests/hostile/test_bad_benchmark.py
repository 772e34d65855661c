"""Bad input to ``cachekd benchmark``: refused before anything is measured, or a marked gap."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comparing import config, forked, measures
from tiny import Family, Ran, save_model, save_tokenizer, write_rows

import cachekd as package
from cachekd.config import BenchmarkConfig
from cachekd.costs.comparison import children, live_step, page, parameters
from cachekd.costs.comparison.ledger import report_of
from cachekd.errors import ConfigError, StoreError, WorkerError
from cachekd.store import disk

Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def refused(
    cachekd: Run,
    family: Family,
    data: Path,
    tmp_path: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., str]:
    """Runs the command, expects a refusal before a process is started, and gives its message."""

    def run(*further: object, code: int, **replaced: object) -> str:
        monkeypatch.setattr(children, "launch", lambda: pytest.fail("something was measured"))
        options = {"teacher": family.teacher, "student": family.student, "data": data, **replaced}
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        ran = cachekd("benchmark", *flags, *further)
        assert ran.code == code, ran.err
        assert ran.out == "" and "Traceback" not in ran.err and ran.err.count("\n") <= 6
        assert not list(temporary.iterdir()), "a temporary folder was left"
        return ran.err

    return run


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--price-per-hour", -1], "price_per_hour"),
        (["--price-per-hour-student", -0.5], "price_per_hour_student"),
        (["--price-per-gb-month", "nan"], "price_per_gb_month"),
        (["--price-per-hour", "inf"], "price_per_hour"),
        (["--months", -3], "months"),
        (["--epochs", 0], "epochs"),
        (["--students", 0], "students"),
        (["--teacher-changes", 0], "teacher_changes"),
        (["--samples", 0], "samples"),
        (["--steps", 0], "steps"),
        (["--discard", 0], "discard: expected at least 1"),
        (["--seed", -1], "seed"),
        (["--backend", "dummy"], "expected hf"),
        (["--logits-top-p", 2], "logits_top_p"),
        (["--max-steps", 3], "set --steps"),
        (["--num-train-epochs", 3], "set --epochs"),
        (["--learning-rat", 3], "Did you mean 'learning_rate'?"),
        (["--objective", "kdd"], "Did you mean 'kd'?"),
        (["--beta", 0.3], "an option of the objectives"),
        (["--temperature", 7], "--temperatures"),
    ],
)
def test_settings(refused: Callable[..., str], flags: list[object], part: str) -> None:
    assert part in refused(*flags, code=2)


@pytest.mark.parametrize("objective", ["gkd", "distillm", "minillm", "imitkd", "multi_granularity"])
def test_moving_contexts_are_not_cached(refused: Callable[..., str], objective: str) -> None:
    message = refused("--objective", objective, code=2)
    assert "Do not cache for it" in message and "--score-cache" in message


def test_objectives_that_one_capture_does_not_serve(refused: Callable[..., str]) -> None:
    assert "floor" in refused("--objective", "sft", code=2)
    for flags in (["dae"], ["seqkd"], ["kd", "--loss", "kd=1,attention=1"]):
        assert "does not serve" in refused("--objective", *flags, code=2)


def test_another_tokenizer_is_a_wrong_pair(refused: Callable[..., str], tmp_path: Path) -> None:
    import json

    other = tmp_path / "other"
    vocab = save_tokenizer(other)
    save_model(other, vocab, width=16, layers=1, seed=3)
    words = json.loads((other / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(words))
    message = refused(student=other, code=5)
    assert "one tokenizer" in message and str(other) in message


def test_models_and_data_that_are_not_there(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "nowhere" in refused(data="/nowhere.jsonl", code=1)
    assert "nobody" in refused(student="/nobody", code=1)
    assert "nobody" in refused(teacher="/nobody", code=1)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "empty" in refused(data=empty, code=1)


def test_places_that_cannot_be_written_to(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "folder" in refused("--out", tmp_path, code=2)
    (tmp_path / "file").write_text("")
    assert "out" in refused("--out", tmp_path / "file" / "b.html", code=2)
    assert "plots_dir" in refused("--plots-dir", tmp_path / "file" / "png", code=2)


# What goes wrong while it is measured


@pytest.fixture
def measured(
    family: Family, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Runs a benchmark in forked processes, on one short sample."""
    data = write_rows(tmp_path / "one.jsonl", [{"instruction": "a", "output": "b"}])

    def run(launch: Callable[[], Any] = forked, **changes: Any) -> dict[str, Any]:
        monkeypatch.setattr(children, "launch", launch)
        settings: dict[str, Any] = {
            "teacher": str(family.teacher),
            "student": str(family.student),
            "data": (str(data),),
            "device": "cpu",
            "threads": 1,
            "steps": 1,
            "discard": 1,
            "training": {"use_cpu": True},
            "out": str(tmp_path / "b.html"),
        }
        report = package.benchmark(BenchmarkConfig(**{**settings, **changes}))
        assert not list(temporary.iterdir()), "a temporary folder was left"
        return report

    return run


def test_a_single_short_sample_is_measured(measured: Callable[..., dict[str, Any]]) -> None:
    report = measured()
    assert report["data"]["drawn"] == report["data"]["steps_per_epoch"] == 1
    tokens = report["data"]["tokens"]
    assert report["capture"]["tokens_per_second"]["value"] > 0
    for side in ("cached", "live", "sft"):
        own = report["steps"][side]
        assert own["epoch_seconds"]["value"] == pytest.approx(
            own["seconds_per_token"]["value"] * tokens
        )


def test_a_teacher_that_does_not_fit_beside_the_student(
    measured: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    def short(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(live_step.LiveTeacher, "states", short)
    report = measured()
    gap = report["steps"]["live"]["step_seconds"]
    assert gap["kind"] == "gap"
    assert "the teacher does not fit beside the student: CUDA out of memory" in gap["how"]
    assert report["steps"]["cached"]["step_seconds"]["value"] > 0
    assert report["steps"]["sft"]["step_seconds"]["value"] > 0
    assert report["verdict"]["advice"] == "cache" and report["alternated"] is False
    assert "does not fit beside the student" in (tmp_path / "b.html").read_text()


def test_a_teacher_that_does_not_fit_at_all(
    measured: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cachekd.teachers import hf

    def short(*_: Any) -> Any:
        raise MemoryError("injected")

    monkeypatch.setattr(hf, "load_model", short)
    report = measured()
    assert "out of memory" in report["capture"]["seconds"]["how"]
    assert report["verdict"]["advice"] == "cannot tell"
    assert len(page.gaps(report)) >= 2


def test_parameters_that_cannot_be_counted_are_asked_for_first_and_leave_the_rest(
    measured: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code of the model's own that does not run on the meta device."""
    asked: list[str] = []

    def fails(*_: Any, **__: Any) -> Any:
        asked.append("counted")
        raise RuntimeError("no kernel for meta tensors\nand much more")

    def launch() -> Any:
        asked.append("measured")
        return forked()

    monkeypatch.setattr(parameters, "count", fails)
    report = measured(launch=launch)
    assert asked[:3] == ["counted", "counted", "measured"]
    assert "no kernel for meta tensors" in report["sensitivity"]["gap"]
    assert report["models"]["teacher"]["parameters"] is None
    assert report["time"]["break_even"]["kind"] != "gap"


def test_a_side_that_is_killed(
    measured: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        live_step.LiveTeacher, "states", lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    )
    report = measured()
    assert "SIGTERM" in report["steps"]["live"]["step_seconds"]["how"]
    assert report["verdict"]["advice"] == "cannot tell"
    assert report["steps"]["cached"]["step_seconds"]["value"] > 0


def test_what_a_side_refuses_is_the_users_to_mend(
    measured: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="sampled entries"):
        measured(logits_selection="sampled", objective="jsd")
    assert not (tmp_path / "b.html").exists()


def test_a_page_that_cannot_be_written_leaves_none_half(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The disk fills up while hours were measured: an error, and no half page."""

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    made = config(out=str(tmp_path / "out" / "b.html"), plots_dir=str(tmp_path / "png"))
    monkeypatch.setattr(disk, "write", full)
    with pytest.raises(StoreError, match="No space left"):
        page.write_outputs(made, report_of(measures(config=made)))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_processes_that_do_not_start_end_the_benchmark(
    measured: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """They are a broken installation, not a machine that is too small."""
    with pytest.raises(WorkerError, match=r"did not start: its process .* with code 1"):
        measured(lambda: forked(lambda _: sys.exit(1)))
    assert not (tmp_path / "b.html").exists()
