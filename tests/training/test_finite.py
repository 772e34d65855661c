"""A step whose loss or gradient is no finite number is not taken, whoever made it so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeCache, documents, record, student
from tiny import Family, Ran, chat_rows, write_rows
from together import all_of
from transformers import TrainerCallback, TrainingArguments

from cachekd.errors import NonFiniteLoss
from cachekd.objectives import build
from cachekd.training.collate import Collator
from cachekd.training.finite import SKIPS
from cachekd.training.loader import CacheDataset
from cachekd.training.order import EpochSampler
from cachekd.training.trainer import DistillTrainer

BATCH = 4
DOCUMENTS = documents(24, seed=3)


def _wrong(item: Any) -> Any:
    """With the mass of its tail in place of its logarithm."""
    return replace(item, logits=replace(item.logits, tail=np.exp(item.logits.tail) + 1))


def _records(bad_step: int | None = None) -> list[Any]:
    """Records of which one, in the batch of this step, has wrong targets."""
    records = [record(ids, top_p=0.9) for ids in DOCUMENTS]
    order = list(EpochSampler(CacheDataset(FakeCache(records)), 5))
    if bad_step is not None:
        place = order[BATCH * (bad_step - 1)]
        records[place] = _wrong(records[place])
    return records


def _trainer(folder: Path, records: list[Any], steps: int = 6, **changes: Any) -> DistillTrainer:
    settings = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 5,
        **changes,
    }
    return DistillTrainer(
        model=student(),
        args=TrainingArguments(**settings),
        objective=build("kd", {"loss": {"kd": 1.0}}),
        train_dataset=CacheDataset(FakeCache(records)),
        data_collator=Collator(),
    )


def _weights(trainer: DistillTrainer) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in trainer.model.parameters()])


def test_wrong_targets_end_the_run_before_they_reach_a_weight(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, _records(bad_step=3))
    with pytest.raises(NonFiniteLoss, match=r"step 3: .* found loss nan, kl nan.* verify CACHE"):
        trainer.train()
    before = _trainer(tmp_path, _records(), steps=2)
    before.train()
    assert torch.equal(_weights(trainer), _weights(before))


def test_a_part_of_an_accumulated_step_is_enough(tmp_path: Path) -> None:
    parts = {"per_device_train_batch_size": BATCH // 2, "gradient_accumulation_steps": 2}
    trainer = _trainer(tmp_path, _records(bad_step=2), **parts)
    with pytest.raises(NonFiniteLoss, match="step 2: "):
        trainer.train()
    assert torch.isfinite(_weights(trainer)).all()


def _breaking(trainer: DistillTrainer, steps: range) -> DistillTrainer:
    """One whose gradient overflows at these steps, and no other."""
    parameter = next(trainer.model.parameters())

    class Break(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step + 1 in steps:
                hooks.append(parameter.register_hook(lambda grad: grad * torch.inf))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            while hooks:
                hooks.pop().remove()

    hooks: list[Any] = []
    trainer.add_callback(Break())
    return trainer


def test_a_gradient_alone_is_told_from_a_loss(tmp_path: Path) -> None:
    trainer = _breaking(_trainer(tmp_path, _records()), range(4, 5))
    with pytest.raises(NonFiniteLoss, match=r"step 4: .* found gradient (nan|inf)\. "):
        trainer.train()
    assert torch.isfinite(_weights(trainer)).all()


def _scaled(trainer: DistillTrainer) -> DistillTrainer:
    """As on a GPU with ``--fp16 true``, whose scaler leaves out steps by itself."""
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    trainer.accelerator.state._mixed_precision = "fp16"
    return trainer


@pytest.fixture
def _plain_again() -> Any:
    """accelerate keeps its state for the process."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_plain_again")
def test_steps_that_a_scaler_leaves_out_are_counted(tmp_path: Path) -> None:
    trainer = _breaking(_scaled(_trainer(tmp_path, _records())), range(2, 5))
    trainer.train()
    assert trainer.finite.skipped == 3 and trainer.state.global_step == 6
    assert torch.isfinite(_weights(trainer)).all()


@pytest.mark.usefixtures("_plain_again")
def test_a_scaler_that_leaves_out_all_steps_ends_the_run(tmp_path: Path) -> None:
    trainer = _breaking(_scaled(_trainer(tmp_path, _records(), steps=SKIPS + 5)), range(99))
    start = _weights(trainer)
    with pytest.raises(NonFiniteLoss, match=rf"step {SKIPS}: .* in the {SKIPS - 1} before"):
        trainer.train()
    assert torch.equal(_weights(trainer), start)


@pytest.mark.usefixtures("_plain_again")
def test_a_scaler_leaves_no_loss_out_whose_gradient_is_finite(tmp_path: Path) -> None:
    trainer = _scaled(_trainer(tmp_path, _records(bad_step=1)))
    with pytest.raises(NonFiniteLoss, match=r"step 1: .* found loss nan, kl nan\. "):
        trainer.train()


def test_all_processes_end_though_one_alone_met_it(tmp_path: Path) -> None:
    def run() -> None:
        torch.set_num_threads(1)
        trainer = _trainer(
            tmp_path / "out", _records(bad_step=2), per_device_train_batch_size=BATCH // 2
        )
        try:
            trainer.train()
        except NonFiniteLoss as error:
            rank = trainer.args.process_index
            told = {"said": str(error), "finite": bool(torch.isfinite(_weights(trainer)).all())}
            (tmp_path / f"{rank}.json").write_text(json.dumps(told))
        trainer.leave_group()

    ended = all_of(2, tmp_path / "said", run)
    assert [one.code for one in ended] == [0, 0], ended
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1] and told[0]["finite"]
    assert "step 2: " in told[0]["said"] and "kl nan" in told[0]["said"]


@pytest.mark.parametrize("live", [False, True], ids=["cache", "on-policy"])
def test_a_rate_that_is_far_too_high_leaves_no_student(
    family: Family, made: Any, tmp_path: Path, cachekd: Callable[..., Ran], live: bool
) -> None:
    data = write_rows(tmp_path / "data.jsonl", chat_rows(8))
    source = ("--data", data, "--teacher", family.teacher, "--objective", "gkd", "--lmbda", 1)
    out = tmp_path / "out"
    ran = cachekd(
        *("train", "--student", family.student, "--output-dir", out, "--max-steps", 6),
        *("--use-cpu", "true", "--learning-rate", 1e38, "--logging-steps", 1),
        *((*source, "--max-new-tokens", 4) if live else ("--cache", made.cache)),
    )
    assert ran.code == 1, ran.err
    assert "lower --learning-rate" in ran.err and "Traceback" not in ran.err
    assert not (out / "model.safetensors").exists()
