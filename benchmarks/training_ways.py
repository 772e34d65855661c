"""Ways to train the same student on the same documents, each as a Trainer.

Ours: `DistillTrainer` on caches. Beside it what others do or would write: plain supervised
fine-tuning by `transformers.Trainer`, cached targets on whole logits, live teachers with whole
logits, Liger's chunked loss; and a live teacher within our fused pass. All share one student's
weights and one optimiser, whose learning rate is 0: a step costs the same, and losses of different
ways can be compared at any step.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import training_setup as setup
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainingArguments, default_data_collator

from cachekd.losses.student import StudentRows
from cachekd.objectives import Needs, build
from cachekd.training.collate import Collator
from cachekd.training.loader import CacheDataset
from cachekd.training.order import EpochSampler
from cachekd.training.trainer import DistillTrainer
from cachekd.types import Batch, ObjectiveOutput, TargetTensors

OBJECTIVES = ("jsd", "skew", "reverse_kl", "symmetric", "tvd")


class Bench:
    """One student, its optimiser, caches and teachers, and the trainers made of them."""

    def __init__(self, folder: Path, sizes: setup.Sizes, *, bf16: bool, steps: int) -> None:
        self.folder, self.sizes, self.bf16, self.max_steps = folder, sizes, bf16, steps
        self.student = setup.student(sizes.vocab)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=0.0, fused=True)
        dataset = CacheDataset(str(folder / "k64"))
        order = EpochSampler(dataset, seed=self.settings()["seed"])
        self.ordered = [dataset.record(i).input_ids.tolist() for i in order]
        self._teachers: dict[int, Any] = {}

    def settings(self) -> dict[str, Any]:
        """Arguments of every trainer."""
        return {
            "output_dir": tempfile.gettempdir(),
            "max_steps": self.max_steps,
            "per_device_train_batch_size": self.sizes.rows,
            "learning_rate": 0.0,
            "lr_scheduler_type": "constant",
            "train_sampling_strategy": "sequential",
            "logging_first_step": True,
            "logging_steps": 10,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "bf16": self.bf16,
            "dataloader_pin_memory": False,
            "seed": 42,
        }

    def common(self) -> dict[str, Any]:
        """What every trainer is made with."""
        return {"model": setup.shared(self.student), "optimizers": (self.optimizer, None)}

    def teacher(self, times: int) -> Any:
        if times not in self._teachers:
            self._teachers[times] = setup.teacher(self.sizes.vocab, times)
        return setup.shared(self._teachers[times])

    def sft_full(self) -> Trainer:
        """What fine-tuning is without us: labels to the model, which makes its own loss."""
        rows = [{"input_ids": ids, "labels": ids} for ids in self.ordered]
        return Trainer(
            args=TrainingArguments(**self.settings()),
            train_dataset=_Rows(rows),
            data_collator=default_data_collator,
            **self.common(),
        )

    def cached(
        self, objective: str, cache: str = "k64", kind: type[DistillTrainer] | None = None, **of: Any
    ) -> DistillTrainer:
        """Our trainer on a cache."""
        made, dataset = build(objective, of), TimedDataset(str(self.folder / cache))
        unigram = dataset.unigram() if made.needs().unigram else None
        return (kind or DistillTrainer)(
            args=TrainingArguments(**self.settings()),
            objective=made,
            train_dataset=dataset,
            data_collator=TimedCollator(unigram=unigram),
            **self.common(),
        )

    def live(self, times: int, kind: type[LiveTrainer]) -> LiveTrainer:
        """A live teacher in our trainer."""
        return kind(
            teacher=self.teacher(times),
            args=TrainingArguments(**self.settings()),
            train_dataset=_Rows(self.ordered, self.sizes.vocab),
            **self.common(),
        )


class _Rows(Dataset[Any]):
    """Documents without a teacher, in order."""

    def __init__(self, rows: Sequence[Any], vocab_size: int = 0) -> None:
        self._rows, self.vocab_size = rows, vocab_size

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]


class TimedDataset(CacheDataset):
    """Counts the seconds in which records are read and decoded."""

    seconds, batches = 0.0, 0

    def __getitems__(self, indices: Any) -> Any:
        """See `CacheDataset`."""
        started = time.perf_counter()
        items = super().__getitems__(indices)
        self.seconds += time.perf_counter() - started
        self.batches += 1
        return items


class TimedCollator(Collator):
    """Counts the seconds in which batches are made of records."""

    seconds = 0.0

    def __call__(self, items: Any) -> Batch:
        """See `Collator`."""
        started = time.perf_counter()
        batch = super().__call__(items)
        self.seconds += time.perf_counter() - started
        return batch


class GatherTrainer(DistillTrainer):
    """Cached forward KL and cross entropy as most would write it: on the model's whole logits.

    For caches with as many entries in every row; what is outside them is not looked at.
    """

    def _objective_output(self, model: Any, batch: Batch, dataset: Any) -> ObjectiveOutput:
        targets = batch["targets"]
        logits_BTV = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits
        logits_NV = logits_BTV.flatten(0, 1)[batch["rows"]].float()
        rows = len(logits_NV)
        ids_NK, log_p_NK = targets["ids"].view(rows, -1), targets["logprobs"].view(rows, -1)
        norm_N = torch.logsumexp(logits_NV, 1)
        log_q_NK = logits_NV.gather(1, ids_NK) - norm_N[:, None]
        kl = (log_p_NK.exp() * (log_p_NK - log_q_NK)).sum()
        ce = F.cross_entropy(logits_NV, targets["next_ids"], reduction="sum")
        return ObjectiveOutput(
            loss_sum=0.9 * kl + 0.1 * ce, weight_sum=targets["weights"].sum(), metrics={}
        )


class LiveKL:
    """Forward KL over the vocabulary, of teacher logits that exist for a chunk of rows at a time.

        KL = sum_v p_v (t_v - z_v) - log sum exp t + log sum exp z
    """

    def __init__(self, weight_VD: Tensor) -> None:
        self._weight_VD = weight_VD

    def needs(self) -> Needs:
        """Whole logits of a chunk."""
        return Needs(dense=True)

    def learned(self) -> None:
        """Nothing."""

    def prepare(self, targets: TargetTensors, vocab_size: int) -> TargetTensors:
        """As they are."""
        return targets

    def __call__(self, student: StudentRows, targets: TargetTensors) -> ObjectiveOutput:
        """Sum over the rows of a chunk."""
        with torch.no_grad():
            hidden_RD: Tensor = targets["teacher"]  # type: ignore[typeddict-item]
            teacher_RV = (hidden_RD.to(self._weight_VD.dtype) @ self._weight_VD.t()).float()
            norm_R = teacher_RV.logsumexp(1)
            p_RV = (teacher_RV - norm_R[:, None]).exp_()
            fixed_R = teacher_RV.mul_(p_RV).sum(1) - norm_R
        cross_R = (p_RV * student.logits()).sum(1)
        kl_R = fixed_R - cross_R + student.outcomes(1.0).log_norm_R
        weights_R = targets["weights"]
        loss_sum = (weights_R * kl_R).sum()
        return ObjectiveOutput(loss_sum=loss_sum, weight_sum=weights_R.sum(), metrics={})


class LiveTrainer(DistillTrainer):
    """A live teacher: its forward without gradients, then dense forward KL in our fused pass."""

    def __init__(self, *, teacher: Any, args: TrainingArguments, **kwargs: Any) -> None:
        self.teacher = teacher.to(torch.bfloat16) if args.bf16 else teacher
        super().__init__(
            args=args,
            objective=LiveKL(self.teacher.lm_head.weight),
            data_collator=token_batch,
            **kwargs,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        self.epoch_sampler = InOrder(self.train_dataset)
        return self.epoch_sampler

    def _objective_output(self, model: Any, batch: Batch, dataset: Any) -> ObjectiveOutput:
        hidden_ND = self.hidden(batch).flatten(0, 1)[batch["rows"]]
        targets: Any = {**batch["targets"], "teacher": hidden_ND}
        return super()._objective_output(model, {**batch, "targets": targets}, dataset)

    def hidden(self, batch: Batch) -> Tensor:
        """The teacher's last hidden states [B, T, D]."""
        with torch.no_grad():
            states: Tensor = self.teacher.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            ).last_hidden_state
        return states


class DenseLiveTrainer(LiveTrainer):
    """The same with whole logits of both, by `kl_div` of both `log_softmax`es."""

    def _objective_output(self, model: Any, batch: Batch, dataset: Any) -> ObjectiveOutput:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}  # type: ignore[literal-required]
        own = model(**inputs, use_cache=False).logits[:, :-1]
        with torch.no_grad():
            theirs = self.teacher(**inputs, use_cache=False).logits[:, :-1]
        log_q, log_p = torch.log_softmax(own.float(), -1), torch.log_softmax(theirs.float(), -1)
        loss = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
        return ObjectiveOutput(loss_sum=loss, weight_sum=batch["targets"]["weights"].sum())


class LigerTrainer(LiveTrainer):
    """The same by Liger's chunked loss, which makes logits of both a chunk of rows at a time."""

    chunk = 1024

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
        own = inner.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).last_hidden_state
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
