"""A student whose head is sharded over processes (FSDP2) gives the gradients of the whole one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes import VOCAB, documents, record, student

from cachekd.objectives import build
from cachekd.training.collate import Collator
from cachekd.training.head import StudentHead
from cachekd.training.loss import batch_loss

SCRIPT = Path(__file__).parent / "sharded_step.py"


@pytest.mark.slow
def test_gradients_of_a_sharded_student_are_those_of_a_whole_one(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [
            sys.executable,
            *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(str(SCRIPT), str(tmp_path / "gradients")),
        ],
        check=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    found = torch.load(tmp_path / "gradients", weights_only=True)
    model = student()
    everything = Collator()([record(ids, top_p=0.9) for ids in documents(8, seed=3)])
    head = StudentHead(model, model)
    batch_loss(model, head, everything, build("kd", {}), VOCAB).loss_sum.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(2 * found[name], parameter.grad, atol=1e-10, rtol=1e-7)
