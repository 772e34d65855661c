"""What users start: torchrun, and accelerate with the file of docs/multi_gpu.md, against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import capture
from safetensors.torch import load_file
from tiny import Family, chat_rows, write_rows
from together import together

DOCS = Path(__file__).parents[2] / "docs" / "multi_gpu.md"
FIGURES = ("loss", "kl", "ce", "grad_norm", "eval_kl")


def _accelerate_file(folder: Path) -> Path:
    """The file that the document shows, for two processes; checkpoints tell whether it is heard."""
    blocks = [block for block in DOCS.read_text().split("```") if "# accelerate.yaml" in block]
    assert len(blocks) == 1 and "num_processes: 8" in blocks[0]
    path = folder / "accelerate.yaml"
    text = blocks[0].removeprefix("yaml").replace("num_processes: 8", "num_processes: 2")
    path.write_text(text.replace("FULL_STATE_DICT", "SHARDED_STATE_DICT"))
    return path


@pytest.fixture(scope="module")
def settings(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of settings, as the README shows it."""
    root = tmp_path_factory.mktemp("launched")
    for name, first in (("cache", 0), ("held-out", 70)):
        capture(family, write_rows(root / f"{name}.jsonl", chat_rows(9, first)), root / name)
    path = root / "kd.yaml"
    path.write_text(
        f"cache: {root / 'cache'}\nstudent: {family.student}\neval_cache: {root / 'held-out'}\n"
        "objective: kd\nloss: {ce: 0.1, kd: 0.9}\n"
        "training:\n  learning_rate: 1.0e-3\n  num_train_epochs: 2\n  logging_steps: 1\n"
        "  eval_strategy: epoch\n  save_strategy: epoch\n  use_cpu: true\n"
    )
    return path


@pytest.fixture(scope="module")
def one(settings: Path) -> Path:
    """The run of one process."""
    out = settings.parent / "one"
    flags = ("--config", settings, "--output-dir", out, "--per-device-train-batch-size", 4)
    (ended,) = together(1, settings.parent / "said", "train", *flags)
    assert ended.code == 0, ended.err[-3000:]
    return out


def _rows(out: Path) -> list[dict[str, float]]:
    history = json.loads((out / "run.json").read_text())["history"]
    return [{name: row[name] for name in FIGURES if name in row} for row in history]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_launched_processes_train_as_one(
    settings: Path, one: Path, tmp_path: Path, launcher: str
) -> None:
    start = {
        "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        "accelerate": ["accelerate.commands.launch", "--config_file"],
    }[launcher]
    start += [str(_accelerate_file(tmp_path))] if launcher == "accelerate" else []
    out = tmp_path / "out"
    flags = ["--config", settings, "--output-dir", out, "--per-device-train-batch-size", 2]
    done = subprocess.run(
        [sys.executable, "-m", *start, "-m", "cachekd_cli", "train", *map(str, flags)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = json.loads((out / "run.json").read_text())
    assert run["throughput"]["processes"] == 2 and run["steps"] == 6
    sharded = list(out.glob("checkpoint-*/pytorch_model_fsdp_0"))
    assert len(sharded) == (2 if launcher == "accelerate" else 0)
    found, expected = _rows(out), _rows(one)
    assert len(found) == len(expected) == 9
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, abs=2e-5)
    weights = load_file(one / "model.safetensors")
    for name, value in load_file(out / "model.safetensors").items():
        torch.testing.assert_close(value, weights[name], atol=5e-6, rtol=1e-5)
