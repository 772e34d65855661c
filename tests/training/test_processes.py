"""Two processes give what one gives: weights, logs and evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import json, sys
import torch
from fakes import FakeCache, documents, record, student
from transformers import TrainingArguments
from cachekd.objectives import build
from cachekd.training.collate import Collator
from cachekd.training.loader import CacheDataset
from cachekd.training import learned
from cachekd.training.trainer import DistillTrainer
from weighing import Weighing

class Emptying(Collator):
    # Every fifth document has no trained row, so that whole micro-batches have none.
    def _trained(self, record):
        return super()._trained(record)[: 0 if sum(record.input_ids) % 5 == 0 else None]

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
out, size, kind, resume = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
objective = build("kd", {}) if kind == "kd" else Weighing(Weighing.Options())
if kind == "learned":  # processes that do not begin alike, to be made equal
    import os
    objective.module["a"].data += float(os.environ["RANK"])
records = [record(ids, weight=1.0 + i % 2) for i, ids in enumerate(documents(24))]
trainer = DistillTrainer(
    model=student(),
    args=TrainingArguments(
        output_dir=out, max_steps=8 if not resume else 10, per_device_train_batch_size=size,
        per_device_eval_batch_size=8 if kind == "packed" else 3,
        gradient_accumulation_steps=2, logging_steps=4,
        save_strategy="steps", save_steps=5, report_to="none", disable_tqdm=True, use_cpu=True,
        optim="sgd", learning_rate=0.5, lr_scheduler_type="constant", seed=5,
    ),
    objective=objective, objective_learning_rate=0.05,
    train_dataset=CacheDataset(FakeCache(records)),
    eval_dataset=CacheDataset(FakeCache(records[:7])),
    data_collator=Emptying() if kind == "empty" else Collator(),
    packing_capacity=64 if kind == "packed" else None,
)
trainer.train(resume_from_checkpoint=resume[0] if resume else None)
found = trainer.evaluate()
empty, throughput = trainer.total(trainer.empty_batches), trainer.meter.figures(trainer.accelerator)
if trainer.is_world_process_zero():
    weights = torch.cat([value.detach().flatten() for value in trainer.model.parameters()])
    logs = [entry for entry in trainer.state.log_history if "kl" in entry]
    with open(out + "/found.json", "w") as stream:
        json.dump(
            {"weights": weights.tolist(), "eval": found, "logs": logs, "empty": empty,
             "tokens": throughput["trained_tokens"],
             "learned": [float(v) for v in trainer.learned.values()] if trainer.learned else []},
            stream,
        )
trainer.leave_group()
"""


def _run(folder: Path, processes: int, size: int, *resume: str, kind: str = "kd") -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", str(script), str(folder)]
    command += [str(size), kind, *resume]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def _assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left["learned"] == pytest.approx(right["learned"], abs=1e-6)
    assert left["tokens"] == right["tokens"]
    assert left["weights"] == pytest.approx(right["weights"], abs=1e-6)
    assert len(left["logs"]) == len(right["logs"]) >= 2
    for one, other in zip(left["logs"], right["logs"], strict=True):
        for name in ("loss", "kl", "ce", "tail_mass"):
            assert one[name] == pytest.approx(other[name], abs=1e-5)
    for name in ("eval_loss", "eval_kl", "eval_ce", "eval_tail_mass"):
        assert left["eval"][name] == pytest.approx(right["eval"][name], abs=1e-6)


@pytest.mark.slow
def test_two_processes_equal_one_also_after_resuming_within_an_epoch(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    _assert_same(_run(one, 1, 4), _run(two, 2, 2))
    left = _run(one, 1, 4, str(one / "checkpoint-5"))
    right = _run(two, 2, 2, str(two / "checkpoint-5"))
    _assert_same(left, right)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_beside_the_student(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    left, right = _run(one, 1, 4, kind="learned"), _run(two, 2, 2, kind="learned")
    _assert_same(left, right)
    assert abs(left["learned"][0] - 0.25) > 0.05
    left = _run(one, 1, 4, str(one / "checkpoint-5"), kind="learned")
    _assert_same(left, _run(two, 2, 2, str(two / "checkpoint-5"), kind="learned"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["empty", "packed"])
def test_two_processes_equal_one_on_packed_rows_and_with_batches_that_have_no_row(
    tmp_path: Path, kind: str
) -> None:
    """One document or packed row a micro-batch: accumulated, some of them empty in one process."""
    left = _run(tmp_path / "one", 1, 2, kind=kind)
    right = _run(tmp_path / "two", 2, 1, kind=kind)
    if kind == "empty":
        assert right["empty"] > left["empty"] >= 0
    else:
        left["tokens"] = right["tokens"] = 0  # rows filled up to the longest of their batch
    _assert_same(left, right)
