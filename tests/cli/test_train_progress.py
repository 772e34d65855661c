"""What ``cachekd train`` shows: a bar on a terminal, lines elsewhere, one object with --json."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import capture
from tiny import Family, Ran

Run = Callable[..., Ran]
ROW = {"loss": 1.25, "kl": 0.75, "ce": 5.5, "learning_rate": 1e-4, "grad_norm": 2.0, "epoch": 1.0}


@pytest.fixture
def flags(family: Family, data: Path, tmp_path: Path) -> list[object]:
    capture(family, data, tmp_path / "cache")
    found: list[object] = ["--cache", tmp_path / "cache", "--student", family.student]
    found += ["--output-dir", tmp_path / "out", "--max-steps", 4, "--logging-steps", 2]
    return [*found, "--use-cpu", "true", "--save-strategy", "no"]


def test_lines_with_loss_parts_and_evaluations(
    cachekd: Run, flags: list[object], tmp_path: Path
) -> None:
    ran = cachekd("train", *flags, "--eval-cache", tmp_path / "cache", "--eval-strategy", "epoch")
    assert ran.code == 0, ran.err
    lines = [line for line in ran.err.splitlines() if line.startswith("train: ")]
    assert [line.split(",")[0] for line in lines[:2]] == [
        "train: step 2 of 4",
        "train: step 4 of 4",
    ]
    for part in ("steps/s", "s left", "loss ", "kl ", "ce ", "tail_mass ", "lr "):
        assert part in lines[0]
    assert any("eval_kl" in line and "eval_loss" in line for line in lines)
    assert "'loss'" not in ran.err and "it/s]" not in ran.err.split("train: ", 1)[1]


def test_json_is_one_object(cachekd: Run, flags: list[object]) -> None:
    ran = cachekd("train", *flags, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["steps"] == 4 and ran.out.count("\n") == 1


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_moves_with_every_step_and_keeps_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import import_module

    monkeypatch.setenv("TERM", "xterm")
    terminal = _Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    progress = import_module("cachekd_cli.progress").TrainProgress("train")
    progress(0, 8, {})
    progress(2, 8, ROW)
    progress(2, 8, {"eval_kl": 0.875, "eval_runtime": 3.0})
    progress(3, 8, {})
    progress.close()
    shown = terminal.getvalue()
    assert "3 of 8" in shown and "steps/s" in shown
    assert "loss 1.25, kl 0.75, ce 5.5, lr 0.0001" in shown.rsplit("train", 1)[1]
    assert "eval_kl 0.875" in shown.rsplit("train", 1)[1]
    assert "runtime" not in shown and "grad_norm" not in shown
