"""Two processes answer their own prompts, and train as one does that answers all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import weights
from tiny import Family, chat_rows, write_rows


def _train(
    family: Family, data: Path, out: Path, processes: int, *further: object
) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", "cachekd_cli", "train"]
    flags = ["--data", data, "--student", family.student, "--output-dir", out]
    flags += ["--max-new-tokens", 6, "--max-steps", 4, "--use-cpu", "true", "--logging-steps", 1]
    flags += ["--per-device-train-batch-size", 4 // processes, "--learning-rate", 0.01, *further]
    done = subprocess.run(
        [*command, *map(str, flags)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((out / "run.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "further"),
    [
        ("gkd", ("--lmbda", 0.6)),
        ("imitkd", ("--lmbda", 0.4)),
        ("minillm", ("--collect", 8, "--inner-epochs", 1, "--support", 4)),
        ("multi_granularity", ("--chunker", "adjacent")),
    ],
)
def test_two_processes_train_as_one(
    family: Family, tmp_path: Path, objective: str, further: tuple[object, ...]
) -> None:
    data = write_rows(tmp_path / "data.jsonl", chat_rows(16))
    flags = ("--objective", objective, "--teacher", family.teacher, *further)
    one = _train(family, data, tmp_path / "one", 1, *flags)
    two = _train(family, data, tmp_path / "two", 2, *flags)
    for name in ("rollouts", "rollout_tokens"):
        assert one["rollouts"][name] == two["rollouts"][name]
    alone, both = ([row for row in run["history"] if "grad_norm" in row] for run in (one, two))
    for left, right in zip(alone, both, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-3)
        if "rollout_reverse_kl" in left:
            assert left["rollout_reverse_kl"] == pytest.approx(
                right["rollout_reverse_kl"], rel=1e-3
            )
    left_weights, right_weights = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in left_weights.items():
        torch.testing.assert_close(value, right_weights[name], atol=2e-4, rtol=1e-3)
