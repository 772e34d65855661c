"""Live teachers in our trainer: what cached targets save, with the student's side kept equal.

In: a teacher, token ids. Out: Trainers, of forward KL over the vocabulary: within our fused pass,
on whole logits of both, and by Liger's chunked loss (``pip install --no-deps liger-kernel``, whose
chunked losses are plain torch and run on a CPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import TrainingArguments

from cachekd.costs.comparison.live_step import LiveTrainer as FusedLiveTrainer
from cachekd.types import Batch, ObjectiveOutput


class Rows(Dataset[Any]):
    """Documents without a teacher, in order."""

    def __init__(self, rows: Sequence[Any], vocab_size: int = 0) -> None:
        self._rows, self.vocab_size = rows, vocab_size

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]


class LiveTrainer(FusedLiveTrainer):
    """A live teacher: its forward without gradients, then dense forward KL in our fused pass.

    It takes documents in their order; in bfloat16 the teacher is in bfloat16 too.
    """

    def __init__(self, *, teacher: Any, args: TrainingArguments, **kwargs: Any) -> None:
        self.teacher = teacher.to(torch.bfloat16) if args.bf16 else teacher
        super().__init__(teacher=self.teacher, args=args, data_collator=token_batch, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        self.epoch_sampler = InOrder(self.train_dataset)
        return self.epoch_sampler


class DenseLiveTrainer(LiveTrainer):
    """The same with whole logits of both, by `kl_div` of both `log_softmax`es."""

    def _objective_output(self, model: Any, batch: Batch, dataset: Any) -> ObjectiveOutput:
        own = model(**_inputs(batch)).logits[:, :-1]
        with torch.no_grad():
            theirs = self.teacher(**_inputs(batch)).logits[:, :-1]
        log_q, log_p = torch.log_softmax(own.float(), -1), torch.log_softmax(theirs.float(), -1)
        loss = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
        return ObjectiveOutput(loss_sum=loss, weight_sum=batch["targets"]["weights"].sum())


class LigerTrainer(LiveTrainer):
    """The same by Liger's chunked loss, which makes logits of both a chunk of rows at a time."""

    chunk = 1024

    def hidden(self, batch: Batch) -> Tensor:
        """The teacher's last hidden states [B, T, D]."""
        with torch.no_grad():
            states: Tensor = self.teacher.model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                use_cache=False,
            ).last_hidden_state
        return states

    def _objective_output(self, model: Any, batch: Batch, dataset: Any) -> ObjectiveOutput:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0,
            weight_soft_loss=1.0,
            beta=0.0,
            compiled=False,
            chunk_size=self.chunk,
        )
        inner, rows = self.accelerator.unwrap_model(model), batch["rows"]
        own = inner.model(**_inputs(batch)).last_hidden_state
        mean = loss(
            own.flatten(0, 1)[rows],
            inner.lm_head.weight,
            self.hidden(batch).flatten(0, 1)[rows],
            self.teacher.lm_head.weight,
            batch["targets"]["next_ids"],
        )
        weight = batch["targets"]["weights"].sum()
        return ObjectiveOutput(loss_sum=mean * weight, weight_sum=weight)


class SmallLigerTrainer(LigerTrainer):
    """With chunks as long as ours."""

    chunk = 256


class InOrder(SequentialSampler):
    """The same order in every epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Nothing changes."""


def _inputs(batch: Batch) -> dict[str, Any]:
    ids_BT, mask_BT = batch["input_ids"], batch["attention_mask"]
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "use_cache": False}


def token_batch(items: Sequence[list[int]]) -> Batch:
    """Documents of one length, with targets that hold no entries."""
    ids_BT = torch.tensor(items)
    batch, length = ids_BT.shape
    rows_N = (torch.arange(batch)[:, None] * length + torch.arange(length - 1)).flatten()
    zeros_N, none = torch.zeros(len(rows_N)), torch.zeros(0)
    return {
        "input_ids": ids_BT,
        "attention_mask": torch.ones_like(ids_BT),
        "position_ids": torch.arange(length).expand(batch, -1),
        "labels": ids_BT,
        "rows": rows_N,
        "targets": {
            "offsets": torch.zeros(len(rows_N) + 1, dtype=torch.int64),
            "ids": none.long(),
            "logprobs": none,
            "tail": zeros_N,
            "next_ids": ids_BT[:, 1:].flatten(),
            "next_logprob": zeros_N,
            "entropy": zeros_N,
            "weights": zeros_N + 1,
            "lognorm": {},
        },
    }
