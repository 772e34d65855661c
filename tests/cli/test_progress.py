"""What progress says: rates that can be read, and no start-up in them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

progress: Any = import_module("cachekd_cli.progress")


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (None, ""),
        (12345.6, "12,346 steps/s"),
        (10.4, "10 steps/s"),
        (2.345, "2.3 steps/s"),
        (1.0, "1 steps/s"),
        (0.4, "2.5 s/step"),
        (0.004, "250 s/step"),
    ],
)
def test_a_rate_has_two_digits_and_is_never_0(rate: float | None, said: str) -> None:
    assert progress.pace_text(rate, "steps") == said


def test_start_up_is_not_in_the_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress.TokenProgress, "_EVERY", 0.0)
    show = progress.TokenProgress("score", "records")
    show(0, 100, 50.0)
    show(10, 100, 100.0)
    show(20, 100, 120.0)
    assert capsys.readouterr().err.splitlines() == [
        "score: 0 of 100 records",
        "score: 10 of 100 records",
        "score: 20 of 100 records, 2 s/record, 160 s left",
    ]


def test_what_is_done_at_once_has_the_rate_of_the_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress.TokenProgress("score", "records")(30, 30, 2.0)
    assert capsys.readouterr().err == "score: 30 of 30 records, 15 records/s, 0 s left\n"


def test_steps_of_a_resumed_run_are_timed_from_its_own_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    show = progress.TrainProgress("train")
    for step, clock[0] in ((500, 0.0), (501, 100.0), (502, 104.0)):
        show(step, 510, {})
    show(502, 510, {"loss": 1.0})
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "train: step 502 of 510, 4 s/step, 32 s left, loss 1"
    assert "s/step" not in "".join(lines[:-1])


def test_a_stage_that_cannot_be_counted_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Stages("records") as show:
        show("loading the teacher", 0, 0)
        show("scoring", 0, 2)
        show("scoring", 2, 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "loading the teacher ..." and len(lines) == 2
    assert lines[1].startswith("scoring: 2 of 2 records")
