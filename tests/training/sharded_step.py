"""Run by torchrun: a fused step of a student sharded with FSDP2; rank 0 saves the gradients."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from fakes import VOCAB, documents, record, student
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from cachekd.objectives import build
from cachekd.training.collate import Collator
from cachekd.training.head import StudentHead
from cachekd.training.loss import batch_loss


def main(out: str) -> None:
    dist.init_process_group("gloo")
    model = student().train()
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    head = StudentHead(model, model)
    assert head.facts is not None
    # Each rank has its half of the documents: gradients are averaged over the ranks.
    own = [record(ids, top_p=0.9) for ids in documents(8, seed=3)][dist.get_rank() :: 2]
    output = batch_loss(model, head, Collator()(own), build("kd", {}), VOCAB)
    output.loss_sum.backward()
    assert isinstance(model.lm_head.weight, DTensor), "the head is sharded again"
    whole = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    if dist.get_rank() == 0:
        torch.save(whole, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
