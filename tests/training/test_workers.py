"""Workers of the data loader: they change nothing, and one that dies ends the run by its name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes import FakeCache, documents, record, student
from transformers import TrainingArguments

from cachekd.objectives import build
from cachekd.training.collate import Collator
from cachekd.training.loader import CacheDataset
from cachekd.training.trainer import DistillTrainer

SCRIPT = """
import os, signal, sys
from fakes import FakeCache, documents, record, student
from torch.utils.data import get_worker_info
from transformers import TrainingArguments
from cachekd.objectives import build
from cachekd.training.collate import Collator
from cachekd.training.loader import CacheDataset
from cachekd.training.trainer import DistillTrainer

class Dying(CacheDataset):
    def __getitems__(self, indices):
        info = get_worker_info()
        if 11 in indices and info is not None:
            print("died", os.getpid(), flush=True)
            {end}
        return super().__getitems__(indices)

trainer = DistillTrainer(
    model=student(),
    args=TrainingArguments(
        output_dir=sys.argv[1], num_train_epochs=2, per_device_train_batch_size=4, use_cpu=True,
        dataloader_num_workers=2, report_to="none", disable_tqdm=True, save_strategy="no",
    ),
    objective=build("kd", {{}}),
    train_dataset=Dying(FakeCache([record(ids) for ids in documents(24)])),
    data_collator=Collator(),
)
trainer.train()
"""


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("end", "text"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by signal"),
        ("os._exit(1)", "exited unexpectedly"),
    ],
)
def test_a_worker_that_dies_ends_the_run_and_is_named(tmp_path: Path, end: str, text: str) -> None:
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(end=end), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    pid = done.stdout.split()[-1]
    named = [line for line in done.stderr.splitlines() if line.startswith("RuntimeError")]
    assert "DataLoader worker" in named[-1] and pid in named[-1]
    assert text in done.stderr


def test_workers_that_stay_see_the_order_of_every_epoch(tmp_path: Path) -> None:
    def weights(workers: int) -> torch.Tensor:
        trainer = DistillTrainer(
            model=student(double=False),
            args=TrainingArguments(
                output_dir=str(tmp_path),
                num_train_epochs=3,
                per_device_train_batch_size=4,
                use_cpu=True,
                dataloader_num_workers=workers,
                dataloader_persistent_workers=bool(workers),
                dataloader_pin_memory=False,
                learning_rate=1e-2,
                report_to="none",
                disable_tqdm=True,
                save_strategy="no",
            ),
            objective=build("kd", {}),
            train_dataset=CacheDataset(FakeCache([record(ids) for ids in documents(10)])),
            data_collator=Collator(),
        )
        trainer.train()
        return torch.cat([value.detach().flatten() for value in trainer.model.parameters()])

    assert torch.equal(weights(0), weights(2))
