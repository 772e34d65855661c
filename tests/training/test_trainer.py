"""The Trainer: cached equals live, accumulation is exact, logs and evaluation are exact means."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import CONTEXT, VOCAB, FakeCache, documents, record, student, teacher_of
from transformers import TrainingArguments

from cachekd.errors import MismatchError
from cachekd.evaluation.heldout import heldout_kl
from cachekd.losses.reference import dense_forward_kl
from cachekd.objectives import build
from cachekd.training.collate import Collator
from cachekd.training.forward import check_packing
from cachekd.training.loader import CacheDataset
from cachekd.training.order import EpochSampler
from cachekd.training.trainer import DistillTrainer

DOCUMENTS = documents(24, seed=3)


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    """Tiny models in float64, so that equal means equal."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _trainer(folder: Path, model: Any, records: list[Any], **changes: Any) -> DistillTrainer:
    options = changes.pop("options", {"loss": {"kd": 1.0}})
    capacity = changes.pop("capacity", None)
    callbacks = changes.pop("callbacks", None)
    reduction = changes.pop("reduction", "token_mean")
    settings = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 5,
        **changes,
    }
    return DistillTrainer(
        model=model,
        args=TrainingArguments(**settings),
        objective=build("kd", options),
        train_dataset=CacheDataset(FakeCache(records)),
        eval_dataset=CacheDataset(FakeCache(records[:7])),
        data_collator=Collator(reduction=reduction),
        packing_capacity=capacity,
        callbacks=callbacks,
    )


def _weights(model: Any) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in model.parameters()])


def _live(order: list[list[int]], steps: int) -> torch.Tensor:
    """The same training by hand: dense teacher logits, one document at a time, shifts by hand."""
    model = student()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(steps):
        loss, rows = torch.zeros(()), 0
        for ids in order[4 * step : 4 * step + 4]:
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1, :VOCAB]
            loss = loss + dense_forward_kl(teacher_of(ids), logits).sum()
            rows += len(ids) - 1
        optimizer.zero_grad()
        (loss / rows).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return _weights(model)


def test_cached_training_equals_live_dense_training(tmp_path: Path) -> None:
    many = documents(80, seed=4)
    trainer = _trainer(tmp_path, student(), [record(ids) for ids in many], max_steps=20)
    order = [many[i] for i in EpochSampler(trainer.train_dataset, 5)]
    start = _weights(trainer.model)
    trainer.train()
    cached, live = _weights(trainer.model), _live(order, 20)
    assert (cached - start).abs().max() > 0.05
    assert (cached - live).abs().max() < 2e-4


def _one_step(folder: Path, size: int, accumulate: int, **changes: Any) -> torch.Tensor:
    records = [record(ids, weight=1.0 + i % 3) for i, ids in enumerate(DOCUMENTS)]
    trainer = _trainer(
        folder,
        student(),
        records,
        options={},
        max_steps=2,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulate,
        optim="sgd",
        max_grad_norm=0.0,
        learning_rate=0.5,
        **changes,
    )
    trainer.train()
    return _weights(trainer.model)


def test_accumulation_is_one_large_batch(tmp_path: Path) -> None:
    whole = _one_step(tmp_path, 8, 1)
    for size, accumulate in ((4, 2), (2, 4), (1, 8)):
        parts = _one_step(tmp_path, size, accumulate)
        assert (parts - whole).abs().max() < 1e-6
    assert (whole - _weights(student())).abs().max() > 1e-3


def test_accumulation_is_one_large_batch_also_of_means_over_samples(tmp_path: Path) -> None:
    whole = _one_step(tmp_path, 8, 1, reduction="seq_mean")
    for size, accumulate in ((2, 4), (1, 8)):
        parts = _one_step(tmp_path, size, accumulate, reduction="seq_mean")
        assert (parts - whole).abs().max() < 1e-6
    assert (whole - _one_step(tmp_path, 8, 1)).abs().max() > 1e-4


def test_packed_epoch_equals_padded_epoch(tmp_path: Path) -> None:
    """All documents in one step: packing changes the layout and not the gradient."""
    padded = _one_step(tmp_path, 24, 1)
    packed = _one_step(tmp_path, 24, 1, capacity=CONTEXT)
    assert (packed - padded).abs().max() < 1e-6


def test_logs_are_means_over_rows(tmp_path: Path) -> None:
    records = [record(ids, top_p=0.9) for ids in DOCUMENTS]
    trainer = _trainer(
        tmp_path, student(), records, learning_rate=0.0, max_steps=6, logging_steps=6
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    expected = heldout_kl(trainer.model, FakeCache(records), batch_tokens=40)  # type: ignore[arg-type]
    assert expected.rows == sum(len(ids) - 1 for ids in DOCUMENTS)
    for name in ("kl", "ce", "tail_mass"):
        assert logged[name] == pytest.approx(getattr(expected, name), rel=1e-9)
    assert logged["tail_mass"] > 0.05


def test_evaluation_is_the_mean_over_rows_whatever_the_batches(tmp_path: Path) -> None:
    records = [record(ids, weight=1.0 + i % 2) for i, ids in enumerate(DOCUMENTS)]
    trainer = _trainer(tmp_path, student(), records, per_device_eval_batch_size=3, options={})
    found = trainer.evaluate()
    expected = heldout_kl(trainer.model, FakeCache(records[:7]))  # type: ignore[arg-type]
    assert found["eval_kl"] == pytest.approx(expected.kl, rel=1e-9)
    assert found["eval_ce"] == pytest.approx(expected.ce, rel=1e-9)
    assert found["eval_tail_mass"] == 0
    assert found["eval_loss"] == pytest.approx(0.9 * expected.kl + 0.1 * expected.ce, rel=1e-9)


def test_resume_within_an_epoch_continues_the_order(tmp_path: Path) -> None:
    records = [record(ids) for ids in DOCUMENTS]
    whole = _trainer(tmp_path / "whole", student(), records, max_steps=10)
    whole.train()
    first = _trainer(
        tmp_path / "parts", student(), records, max_steps=8, save_strategy="steps", save_steps=8
    )
    first.train()  # 6 steps are an epoch
    second = _trainer(tmp_path / "parts", student(seed=9), records, max_steps=10)
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-8"))
    assert torch.equal(_weights(second.model), _weights(whole.model))


def test_batches_without_a_trained_row_count_nothing(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, student(), [record(ids) for ids in DOCUMENTS])
    empty = Collator()([record([1, 2, 3], prompt_length=3)])
    total = trainer._get_num_items_in_batch([empty], torch.device("cpu"))
    loss = trainer.compute_loss(trainer.model, empty, num_items_in_batch=total)
    loss.backward()
    assert loss.item() == 0
    assert trainer.empty_batches == 1
    assert all(
        value.grad is None or torch.equal(value.grad, torch.zeros_like(value))
        for value in trainer.model.parameters()
    )


class _Touching(torch.nn.Module):
    """A student that ignores where documents begin, as a recurrent model does."""

    def __init__(self, takes_positions: bool) -> None:
        super().__init__()
        self.inner, self.takes_positions = student(), takes_positions

    def forward(self, input_ids: Any, attention_mask: Any = None, **other: Any) -> Any:
        if not self.takes_positions and "position_ids" in other:
            raise TypeError("unexpected keyword argument 'position_ids'")
        return self.inner(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("rows", [1, 2])
def test_models_that_separate_documents_may_be_packed(
    attention: str, rows: int, double: bool
) -> None:
    model = student(double=double, attn_implementation=attention).train()
    check_packing(model, VOCAB, "cpu", rows)
    assert model.training


@pytest.mark.parametrize("takes_positions", [True, False])
def test_models_that_do_not_are_refused(takes_positions: bool) -> None:
    with pytest.raises(MismatchError, match="--no-packing"):
        check_packing(_Touching(takes_positions), VOCAB, "cpu")


def test_check_comes_before_the_first_packed_step(tmp_path: Path) -> None:
    records = [record(ids) for ids in DOCUMENTS]
    trainer = _trainer(tmp_path, _Touching(True), records, capacity=CONTEXT)
    before = _weights(trainer.model).clone()
    with pytest.raises(MismatchError, match="does not separate packed documents"):
        trainer.train()
    assert torch.equal(before, _weights(trainer.model))
