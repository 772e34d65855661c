"""The two commands on the tiny family, as several tests need them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import Family

import cachekd
from cachekd import PrecomputeConfig, TrainConfig

STEPS = 20
NEW_TOKENS = 8
TRAINING = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1e9,
    "use_cpu": True,
    "save_strategy": "no",
    "disable_tqdm": True,
    "seed": 7,
}


def capture(family: Family, data: Path, cache: Path, **further: object) -> None:
    settings = {"logits_values": "float32", "threads": 1, "batch_tokens": 1}
    cachekd.precompute(
        PrecomputeConfig(
            teacher=str(family.teacher),
            data=(str(data),),
            cache=str(cache),
            **{**settings, **further},
        )
    )


def train(family: Family, caches: tuple[Path, ...], out: Path, **further: object) -> Path:
    cachekd.train(
        TrainConfig(
            cache=tuple(map(str, caches)),
            student=str(family.student),
            output_dir=str(out),
            training=TRAINING,
            **further,
        )
    )
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def writing_config(family: Family, data: Path, cache: Path, **further: Any) -> PrecomputeConfig:
    """A teacher that needs no model writes a few tokens a response."""
    settings = {
        "threads": 1,
        "batch_tokens": 200,
        "backend": "dummy",
        "generate": "sample",
        "max_new_tokens": NEW_TOKENS,
    }
    return PrecomputeConfig(
        teacher=str(family.teacher), data=(str(data),), cache=str(cache), **{**settings, **further}
    )


def ids_of(cache: Path) -> list[list[int]]:
    return [record.input_ids.tolist() for record in cachekd.open_cache(str(cache))]
