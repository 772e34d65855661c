"""Training that is told to stop: at the border of a step, with a checkpoint, to go on from it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from forking import Ended, Forked, command, handles_signals
from runs import weights
from tiny import Family
from torch.utils.data import get_worker_info

from cachekd.training import build
from cachekd.training.loader import CacheDataset
from cachekd.training.trainer import DistillTrainer

QUICK = 60.0  # a guard against hanging on a machine that is busy
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RESUME = ("--resume-from-checkpoint", "true")
CONTINUES = "with --resume-from-checkpoint true continues"


def flags(family: Family, made: Any, out: Path, *further: object) -> tuple[object, ...]:
    return (
        *("train", "--cache", f"main={made.cache}", "--student", family.student),
        *("--output-dir", out, "--max-steps", 12, "--use-cpu", "true", "--learning-rate", 0.01),
        *("--per-device-train-batch-size", 2, "--save-total-limit", 2, *further),
    )


def assert_stopped(ended: Ended) -> None:
    assert ended.code == 3, ended
    assert "Traceback" not in ended.err and CONTINUES in ended.lines[-1], ended
    assert sum("cachekd: " in line for line in ended.lines) == 1


def assert_same(left: Path, right: Path) -> None:
    one, other = weights(left), weights(right)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, seconds: float, mark: Path) -> None:
    """The step of this number takes its time."""
    step = DistillTrainer.training_step

    def slow(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == number - 1:
            mark.touch()
            time.sleep(seconds)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(DistillTrainer, "training_step", slow)


@pytest.mark.reliability
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_at_random_ends_with_the_weights_of_a_calm_one(
    family: Family, made: Any, tmp_path: Path, workers: int
) -> None:
    further = ("--dataloader-num-workers", workers)
    calm = Forked(command(*flags(family, made, tmp_path / "calm", *further)), tmp_path / "log")
    assert calm.end().code == 0
    run = command(*flags(family, made, tmp_path / "parts", *further, *RESUME))
    chance, stopped, code = random.Random(workers), 0, 3
    while code == 3:
        process = Forked(run, tmp_path / "log")
        process.until(lambda process=process: handles_signals(process.pid))
        time.sleep(chance.uniform(0, 0.2 + 0.5 * stopped))
        if not process.ended():
            process.send(chance.choice(SIGNALS))
        ended = process.end(QUICK)
        code, stopped = ended.code, stopped + 1
        if code == 3:
            assert_stopped(ended)
    assert code == 0, ended
    assert stopped > 1
    assert_same(tmp_path / "calm", tmp_path / "parts")


def test_a_step_that_takes_long_is_finished_or_left_at_a_second_interrupt(
    family: Family, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 3, 1000, tmp_path / "slow")
    run = command(*flags(family, made, tmp_path / "out", "--save-steps", 1))
    process = Forked(run, tmp_path / "log")
    process.until((tmp_path / "slow").exists)
    process.send(signal.SIGINT)
    time.sleep(0.2)
    assert not process.ended()
    process.send(signal.SIGINT)
    assert_stopped(process.end(QUICK))
    assert (tmp_path / "out" / "checkpoint-2").exists()


def test_a_student_that_is_being_loaded_is_not_waited_for(
    family: Family, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any) -> Any:
        (tmp_path / "loading").touch()
        time.sleep(1000)

    monkeypatch.setattr(build.student, "load_student", load)
    process = Forked(command(*flags(family, made, tmp_path / "out")), tmp_path / "log")
    process.until((tmp_path / "loading").exists)
    process.send(signal.SIGTERM)
    assert_stopped(process.end(QUICK))


@pytest.mark.reliability
def test_a_signal_to_all_processes_of_a_run_leaves_a_checkpoint(
    family: Family, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a batch system sends it; while data is waited for, it is the checkpoint before."""
    flags_of = flags(family, made, tmp_path / "parts", "--dataloader-num-workers", 2)
    with monkeypatch.context() as patch:
        at_step(patch, 4, 1.0, tmp_path / "slow")
        process = Forked(command(*flags_of), tmp_path / "log")
        process.until((tmp_path / "slow").exists)
        for pid in (*process.children(), process.pid):
            os.kill(pid, signal.SIGTERM)
        assert_stopped(process.end(QUICK))
    assert (tmp_path / "parts" / "checkpoint-4").exists()
    read = CacheDataset._read

    def waits(self: CacheDataset, indices: Sequence[int]) -> Any:
        if get_worker_info() is not None:
            (tmp_path / "reads").touch()
            time.sleep(1000)
        return read(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(CacheDataset, "_read", waits)
        process = Forked(command(*flags_of, *RESUME), tmp_path / "log")
        process.until((tmp_path / "reads").exists)
        for pid in (*process.children(), process.pid):
            os.kill(pid, signal.SIGTERM)
        assert_stopped(process.end(QUICK))
    assert Forked(command(*flags_of, *RESUME), tmp_path / "log").end().code == 0
    calm = flags(family, made, tmp_path / "calm", "--dataloader-num-workers", 2)
    assert Forked(command(*calm), tmp_path / "log").end().code == 0
    assert_same(tmp_path / "calm", tmp_path / "parts")


@pytest.mark.reliability
def test_a_terminal_that_is_closed_stops_the_run_with_a_checkpoint(
    family: Family, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes of the session are told, and writing to the terminal has become an error."""
    at_step(monkeypatch, 3, 1.0, tmp_path / "slow")
    run = command(*flags(family, made, tmp_path / "out", "--dataloader-num-workers", 2))
    process = Forked(run, tmp_path / "log", terminal=True)
    process.until((tmp_path / "slow").exists)
    os.close(process.terminal)
    assert process.end(QUICK).code == 3
    assert (tmp_path / "out" / "checkpoint-3").exists()
