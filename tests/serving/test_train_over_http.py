"""On-policy training with a teacher over HTTP: the numbers of one in the process, through kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import serving_model
from runs import weights
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd.config import TrainConfig
from cachekd.errors import ConfigError

Make = Callable[..., TrainConfig]


@pytest.fixture
def live(family: Family, tmp_path: Path) -> Make:
    """Settings of six steps of MiniLLM without mixing; keywords replace them."""
    data = write_rows(tmp_path / "data.jsonl", chat_rows(16))

    def make(out: str, **changes: Any) -> TrainConfig:
        options = {"max_new_tokens": 6, "collect": 8, "inner_epochs": 1, "teacher_mix": 0.0}
        settings: dict[str, Any] = {
            "data": (str(data),),
            "student": str(family.student),
            "output_dir": str(tmp_path / out),
            "logits_top_k": 16,
            "objective": "minillm",
            "objective_options": {**options, **changes.pop("options", {})},
            "training": {
                "max_steps": 6,
                "per_device_train_batch_size": 4,
                "logging_steps": 1,
                "learning_rate": 1e-2,
                "use_cpu": True,
                "disable_tqdm": True,
                "save_strategy": "no",
            },
            **changes,
        }
        return TrainConfig(**settings)

    return make


def test_losses_are_those_of_the_teacher_in_the_process(live: Make, family: Family) -> None:
    here = cachekd.train(live("here", teacher=str(family.teacher)))
    with serving_model(family.teacher) as server:
        there = cachekd.train(live("there", teacher_url=server.url, teacher_patience=5.0))
        assert server.answered > 0
    assert here["scores_id"] == there["scores_id"], "so that they share scores"
    for left, right in zip(here["history"], there["history"], strict=True):
        for name in ("loss", "pg_loss", "reverse_kl", "rollout_teacher_nll"):
            if name in left:
                assert left[name] == pytest.approx(right[name], rel=1e-4, abs=1e-5)
    for name, value in weights(Path(here["output_dir"])).items():
        torch.testing.assert_close(
            value, weights(Path(there["output_dir"]))[name], atol=1e-4, rtol=1e-3
        )


def test_mixing_over_http_is_refused_with_the_reason(live: Make, family: Family) -> None:
    with serving_model(family.teacher) as server:
        config = live("mixed", teacher_url=server.url, options={"teacher_mix": 0.2})
        with pytest.raises(ConfigError, match=r"every step of sampling.*--teacher-mix 0"):
            cachekd.train(config)


@pytest.mark.slow
def test_two_processes_share_one_server(live: Make, family: Family, tmp_path: Path) -> None:
    with serving_model(family.teacher) as server:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node=2", "-m", "cachekd_cli", "train", "--objective", "gkd"]
        flags = ["--lmbda", 1, "--teacher-url", server.url, "--data", tmp_path / "data.jsonl"]
        flags += ["--student", family.student, "--output-dir", tmp_path / "two", "--max-steps", 4]
        flags += ["--max-new-tokens", 6, "--per-device-train-batch-size", 2, "--use-cpu", "true"]
        done = subprocess.run(
            [*command, *map(str, flags)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert server.answered >= 8
    run = json.loads((tmp_path / "two" / "run.json").read_text())
    assert run["rollouts"]["rollouts"] == 16 and run["rollouts"]["scores"]["rows_scored"] > 0


def _server(family: Family, port: int) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "cachekd_cli", "serve-teacher", "--json", "--threads", "1"]
    command += ["--teacher", str(family.teacher), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, str(json.loads(process.stdout.readline())["url"])


@pytest.mark.reliability
def test_a_server_that_is_killed_and_comes_back(
    live: Make, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cachekd.training.trainer import DistillTrainer

    whole = cachekd.train(live("whole", teacher=str(family.teacher)))
    process, url = _server(family, 0)
    again: list[subprocess.Popen[str]] = []

    def restart() -> None:
        time.sleep(1.0)
        again.append(_server(family, int(url.rpartition(":")[2]))[0])

    step, restarting = DistillTrainer.training_step, threading.Thread(target=restart)

    def killing(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 1 and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            restarting.start()
        return step(self, *args, **kwargs)

    monkeypatch.setattr(DistillTrainer, "training_step", killing)
    try:
        found = cachekd.train(live("killed", teacher_url=url, teacher_patience=120.0))
    finally:
        restarting.join()
        for one in (process, *again):
            one.kill()
            one.communicate()
    assert process.returncode == -signal.SIGKILL and found["steps"] == 6
    losses = [
        [row["loss"] for row in report["history"] if "loss" in row] for report in (whole, found)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
