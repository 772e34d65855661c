"""From a captured cache to the attention loss of a student, and down with it in a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import capture
from tiny import Family
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from cachekd.objectives import Needs
from cachekd.store.reader import open_cache
from cachekd.training.attention import StudentAttention
from cachekd.training.checks import check_attention
from cachekd.training.collate import Collator
from cachekd.training.loader import CacheDataset


def _run(cache: Path, folder: Path, steps: int = 0) -> list[float]:
    """Mean loss a row: at once, or at each step of training on it alone."""
    opened = open_cache(str(cache), attention=True)
    mapping = check_attention(Needs(attention=1.0), [opened], folder)
    assert mapping is not None
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tap = StudentAttention(model, mapping)
    dataset = CacheDataset(opened, max_length=20)
    loader = DataLoader(dataset, batch_size=8, collate_fn=Collator(attention=True))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(max(steps, 1)):
        batch = next(iter(loader))
        with tap.watching(batch):
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        loss = tap.output() / batch["targets"]["weights"].sum()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize(
    "choice",
    [
        {"attention": "maps", "attention_step": 1 / 255},
        {"attention": "maps", "attention_step": 1 / 255, "attention_keys": 4},
        {"attention": "qk", "attention_step": 0.005},
    ],
    ids=["maps", "best keys", "qk"],
)
def test_the_teacher_has_nothing_to_learn(
    family: Family, data: Path, tmp_path: Path, choice: dict[str, Any]
) -> None:
    capture(family, data, tmp_path / "cache", **choice)
    (own,) = _run(tmp_path / "cache", family.teacher)
    (other,) = _run(tmp_path / "cache", family.student)
    assert 0 <= own < 2e-3
    assert other > 50 * own


def test_the_loss_goes_down_on_rows_that_were_drawn(
    family: Family, data: Path, tmp_path: Path
) -> None:
    capture(
        family, data, tmp_path / "cache", attention="maps", attention_row_share=0.5, batch_tokens=64
    )
    losses = _run(tmp_path / "cache", family.student, steps=25)
    assert losses[-1] < 0.7 * losses[0]
