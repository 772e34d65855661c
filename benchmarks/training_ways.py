"""Ways to train the same student on the same documents, each as a Trainer.

Ours: `DistillTrainer` on caches. Beside it what others do or would write: plain supervised
fine-tuning by `transformers.Trainer`, cached targets on whole logits, and live teachers (see
training_live). All share one student's weights and one optimiser, whose learning rate is 0: a step
costs the same, and losses of different ways can be compared at any step.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import training_setup as setup
from training_live import LiveTrainer, Rows
from transformers import Trainer, TrainingArguments, default_data_collator

from cachekd.objectives import build
from cachekd.training.collate import Collator
from cachekd.training.loader import CacheDataset
from cachekd.training.order import EpochSampler
from cachekd.training.trainer import DistillTrainer
from cachekd.types import Batch, ObjectiveOutput

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
        """Modules of a teacher of so many times the student, over weights that are made once."""
        if times not in self._teachers:
            self._teachers[times] = setup.teacher(self.sizes.vocab, times)
        return setup.shared(self._teachers[times])

    def sft_full(self) -> Trainer:
        """What fine-tuning is without us: labels to the model, which makes its own loss."""
        rows = [{"input_ids": ids, "labels": ids} for ids in self.ordered]
        return Trainer(
            args=TrainingArguments(**self.settings()),
            train_dataset=Rows(rows),
            data_collator=default_data_collator,
            **self.common(),
        )

    def cached(
        self,
        objective: str,
        cache: str = "k64",
        kind: type[DistillTrainer] = DistillTrainer,
        **of: Any,
    ) -> DistillTrainer:
        """Our trainer on a cache."""
        made, dataset = build(objective, of), TimedDataset(str(self.folder / cache))
        unigram = dataset.unigram() if made.needs().unigram else None
        return kind(
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
            train_dataset=Rows(self.ordered, self.sizes.vocab),
            **self.common(),
        )


class TimedDataset(CacheDataset):
    """Counts the processor seconds in which records are read and decoded."""

    seconds, batches = 0.0, 0

    def __getitems__(self, indices: Any) -> Any:
        """See `CacheDataset`."""
        started = time.process_time()
        items = super().__getitems__(indices)
        self.seconds += time.process_time() - started
        self.batches += 1
        return items


class TimedCollator(Collator):
    """Counts the processor seconds in which batches are made of records."""

    seconds = 0.0

    def __call__(self, items: Any) -> Batch:
        """See `Collator`."""
        started = time.process_time()
        batch = super().__call__(items)
        self.seconds += time.process_time() - started
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


class BodyTrainer(DistillTrainer):
    """No head and no loss: what the layers before it cost alone."""

    def _objective_output(self, model: Any, batch: Batch, dataset: Any) -> ObjectiveOutput:
        body = self.accelerator.unwrap_model(model).model
        hidden_BTD = body(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).last_hidden_state
        return ObjectiveOutput(
            loss_sum=hidden_BTD.float().square().sum(), weight_sum=batch["targets"]["weights"].sum()
        )
