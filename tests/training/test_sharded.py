"""A student whose head is sharded over processes (FSDP2) gives the gradients of the whole one."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fakes import VOCAB, documents, record, student
from together import all_of
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from cachekd.objectives import build
from cachekd.training.collate import Collator
from cachekd.training.head import StudentHead
from cachekd.training.loss import batch_loss

RECORDS = [record(ids, top_p=0.9) for ids in documents(8, seed=3)]


def _step(out: Path) -> None:
    """A fused step of a sharded student; the first process saves the gradients."""
    dist.init_process_group("gloo")
    model = student().train()
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    head = StudentHead(model, model)
    assert head.facts is not None
    # Each rank has its half of the documents: gradients are averaged over the ranks.
    own = RECORDS[dist.get_rank() :: 2]
    output = batch_loss(model, head, Collator()(own), build("kd", {}), VOCAB)
    output.loss_sum.backward()
    assert isinstance(model.lm_head.weight, DTensor), "the head is sharded again"
    whole = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    if dist.get_rank() == 0:
        torch.save(whole, out)
    dist.destroy_process_group()


@pytest.mark.slow
def test_gradients_of_a_sharded_student_are_those_of_a_whole_one(tmp_path: Path) -> None:
    ended = all_of(2, tmp_path, partial(_step, tmp_path / "gradients"))
    assert [one.code for one in ended] == [0, 0], ended[0].err[-3000:]
    found = torch.load(tmp_path / "gradients", weights_only=True)
    model = student()
    head = StudentHead(model, model)
    batch_loss(model, head, Collator()(RECORDS), build("kd", {}), VOCAB).loss_sum.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(2 * found[name], parameter.grad, atol=1e-10, rtol=1e-7)
