"""TRL's trainers on the same student, teachers and token ids; needs ``pip install trl==1.16.0``.

GKDTrainer with lmbda 0 and beta 0 does the same work as a live teacher of ours: forward KL on given
documents. DistillationTrainer does other work: the student writes the documents first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import training_setup as setup
from datasets import Dataset
from training_ways import Bench
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer


def gkd(bench: Bench, times: int) -> GKDTrainer:
    """Forward KL to a live teacher, off-policy."""
    args = GKDConfig(
        **bench.settings(),
        lmbda=0.0,
        beta=0.0,
        temperature=1.0,
        disable_dropout=True,
        gradient_checkpointing=False,
        max_length=None,
    )
    return GKDTrainer(
        teacher_model=bench.teacher(times),
        args=args,
        train_dataset=Dataset.from_dict({"input_ids": bench.ordered}),
        data_collator=_collated,
        processing_class=setup.tokenizer(bench.sizes.vocab),
        **bench.common(),
    )


def on_policy(bench: Bench, times: int) -> DistillationTrainer:
    """Forward KL to a live teacher on what the student writes after a prompt of one token."""
    args = DistillationConfig(
        **bench.settings(),
        beta=0.0,
        temperature=1.0,
        disable_dropout=True,
        gradient_checkpointing=False,
        max_completion_length=setup.LENGTH - 1,
        shuffle_dataset=False,
    )
    return DistillationTrainer(
        teacher_model=bench.teacher(times),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": [f"t{ids[0]}" for ids in bench.ordered]}),
        processing_class=setup.tokenizer(bench.sizes.vocab),
        **bench.common(),
    )


def _collated(items: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Whole documents to be trained; prompts are asked for and not used at lmbda 0."""
    ids_BT = torch.tensor([item["input_ids"] for item in items])
    ones_BT = torch.ones_like(ids_BT)
    prompts = {"prompts": ids_BT[:, :1], "prompt_attention_mask": ones_BT[:, :1]}
    return {"input_ids": ids_BT, "attention_mask": ones_BT, "labels": ids_BT.clone(), **prompts}
