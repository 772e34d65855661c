"""Two processes give what one gives: weights, logs and evaluation."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeCache, documents, record, student
from together import all_of
from transformers import TrainingArguments
from weighing import Weighing

from cachekd.objectives import build
from cachekd.training.collate import Collator
from cachekd.training.loader import CacheDataset
from cachekd.training.trainer import DistillTrainer


class Emptying(Collator):
    """Every fifth document has no trained row, so that whole micro-batches have none."""

    def _trained(self, record: Any) -> Any:
        return super()._trained(record)[: 0 if sum(record.input_ids) % 5 == 0 else None]


def _train(out: Path, size: int, kind: str, resume: Path | None) -> None:
    """What each process does; the first writes what was found."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    objective: Any = build("kd", {}) if kind == "kd" else Weighing(Weighing.Options())
    if kind == "learned":  # processes that do not begin alike, to be made equal
        objective.module["a"].data += float(os.environ.get("RANK", 0))
    records = [record(ids, weight=1.0 + i % 2) for i, ids in enumerate(documents(24))]
    trainer = DistillTrainer(
        model=student(),
        args=_arguments(out, size, kind, resume),
        objective=objective,
        objective_learning_rate=0.05,
        train_dataset=CacheDataset(FakeCache(records)),
        eval_dataset=CacheDataset(FakeCache(records[:7])),
        data_collator=Emptying() if kind == "empty" else Collator(),
        packing_capacity=64 if kind == "packed" else None,
    )
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    _tell(trainer, out)
    trainer.leave_group()


def _arguments(out: Path, size: int, kind: str, resume: Path | None) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(out),
        max_steps=10 if resume else 8,
        per_device_train_batch_size=size,
        per_device_eval_batch_size=8 if kind == "packed" else 3,
        gradient_accumulation_steps=2,
        logging_steps=4,
        save_strategy="steps",
        save_steps=5,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        seed=5,
    )


def _tell(trainer: DistillTrainer, out: Path) -> None:
    evaluated = trainer.evaluate()
    empty = trainer.total(trainer.empty_batches)
    tokens = trainer.meter.figures(trainer.accelerator)["trained_tokens"]
    if not trainer.is_world_process_zero():
        return
    weights = torch.cat([value.detach().flatten() for value in trainer.model.parameters()])
    learned = trainer.learned.values() if trainer.learned else []
    found = {
        "weights": weights.tolist(),
        "eval": evaluated,
        "logs": [entry for entry in trainer.state.log_history if "kl" in entry],
        "empty": empty,
        "tokens": tokens,
        "learned": [value.item() for value in learned],
    }
    (out / "found.json").write_text(json.dumps(found))


def _run(
    folder: Path, processes: int, size: int, resume: Path | None = None, *, kind: str = "kd"
) -> dict[str, Any]:
    (folder / "found.json").unlink(missing_ok=True)
    ended = all_of(processes, folder, partial(_train, folder, size, kind, resume))
    assert [one.code for one in ended] == [0] * processes, ended[0].err[-3000:]
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
    left = _run(one, 1, 4, one / "checkpoint-5")
    right = _run(two, 2, 2, two / "checkpoint-5")
    _assert_same(left, right)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_beside_the_student(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    left, right = _run(one, 1, 4, kind="learned"), _run(two, 2, 2, kind="learned")
    _assert_same(left, right)
    assert abs(left["learned"][0] - 0.25) > 0.05
    left = _run(one, 1, 4, one / "checkpoint-5", kind="learned")
    _assert_same(left, _run(two, 2, 2, two / "checkpoint-5", kind="learned"))


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
