"""The live step: its loss against dense float64, against the cache, and what it times."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import capture
from tiny import Family, chat_rows, write_rows
from transformers import AutoModelForCausalLM

from cachekd.config import BenchmarkConfig
from cachekd.costs.comparison.jobs import Job
from cachekd.costs.comparison.live_step import LiveTeacher
from cachekd.costs.comparison.sides import TokenRows, side_of
from cachekd.training.loader import CacheDataset


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a benchmark, with a cache of whole distributions."""
    root = tmp_path_factory.mktemp("live")
    data = write_rows(root / "sample.jsonl", chat_rows(9))
    capture(family, data, root / "cache", logits_selection="full", temperatures=(1.0,))
    return root


def job(side: str, family: Family, folder: Path, **changes: Any) -> Job:
    settings: dict[str, Any] = {
        "teacher": str(family.teacher),
        "student": str(family.student),
        "data": (str(folder / "sample.jsonl"),),
        "device": "cpu",
        "objective_options": {"loss": {"kd": 1.0}},
        "training": {"use_cpu": True, "per_device_train_batch_size": 4},
        "steps": 2,
        "discard": 1,
    }
    return Job(side=side, config=BenchmarkConfig(**{**settings, **changes}), folder=folder)


def batches(trainer: Any) -> list[Any]:
    return list(trainer.get_train_dataloader())


def loss_and_gradient(trainer: Any, batch: Any) -> tuple[float, torch.Tensor]:
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    found = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(found)


def test_live_and_cached_sides_train_alike(family: Family, folder: Path) -> None:
    """On whole distributions both are dense forward KL, on the same batches."""
    cached = side_of(job("cached", family, folder)).trainer
    live = side_of(job("live", family, folder)).trainer
    pairs = list(zip(batches(cached), batches(live), strict=True))
    assert len(pairs) == 3
    for ours, theirs in pairs:
        for name in ("input_ids", "attention_mask", "rows"):
            assert torch.equal(ours[name], theirs[name]), name
        assert len(theirs["targets"]["ids"]) == 0, "it sees no target of the cache"
        (a, of_a), (b, of_b) = (loss_and_gradient(*one) for one in ((cached, ours), (live, theirs)))
        assert a == pytest.approx(b, rel=1e-4)
        assert float((of_a - of_b).norm() / of_a.norm()) < 1e-3
    assert live.live.watch.taken() > 0 and live.live.watch.taken() == 0.0


def test_the_live_loss_is_dense_kl(family: Family, folder: Path) -> None:
    trainer = side_of(job("live", family, folder)).trainer
    batch = batches(trainer)[0]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    teacher = AutoModelForCausalLM.from_pretrained(family.teacher).double()
    student = AutoModelForCausalLM.from_pretrained(family.student).double()
    with torch.no_grad():
        log_p, log_q = (
            torch.log_softmax(model(**inputs).logits[..., : family.vocab], -1).flatten(0, 1)
            for model in (teacher, student)
        )
    expected = 0.0
    for row in batch["rows"].tolist():
        expected += sum(
            math.exp(log_p[row, v]) * float(log_p[row, v] - log_q[row, v])
            for v in range(family.vocab)
        )
    loss = trainer.compute_loss(trainer.model, batch).item()
    assert loss == pytest.approx(expected / len(batch["rows"]), rel=1e-4)


def test_tokens_that_the_teacher_rules_out_leave_the_live_loss_finite(
    family: Family, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = side_of(job("live", family, folder)).trainer
    batch = batches(trainer)[0]
    whole, losses = LiveTeacher.logits, []
    for value in (-1e4, -math.inf):  # both have no share in the teacher's distribution

        def masked(*given: Any, value: float = value) -> torch.Tensor:
            logits_RV = whole(*given).clone()
            logits_RV[:, 3] = value
            return logits_RV

        monkeypatch.setattr(LiveTeacher, "logits", masked)
        losses.append(loss_and_gradient(trainer, batch))
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-6) and math.isfinite(losses[1][0])
    torch.testing.assert_close(losses[1][1], losses[0][1])


def test_the_plain_side_is_cross_entropy_of_the_same_text(family: Family, folder: Path) -> None:
    plain = side_of(job("sft", family, folder)).trainer
    batch = batches(plain)[0]
    student = AutoModelForCausalLM.from_pretrained(family.student)
    with torch.no_grad():
        logits = student(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits.flatten(0, 1)[batch["rows"], : family.vocab]
    expected = torch.nn.functional.cross_entropy(logits, batch["targets"]["next_ids"])
    assert plain.compute_loss(plain.model, batch).item() == pytest.approx(float(expected), rel=1e-4)


def test_a_head_that_is_not_apart_gives_whole_logits(family: Family, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(family.teacher).eval()
    apart, whole = LiveTeacher(model), LiveTeacher(model)
    whole._rows.chunked = False
    batch = batches(side_of(job("sft", family, folder)).trainer)[0]
    logits = [one.logits(one.states(batch), family.vocab) for one in (apart, whole)]
    assert logits[0].shape == (len(batch["rows"]), family.vocab)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_the_student_is_trained_on_every_side(family: Family, folder: Path) -> None:
    for side in ("live", "sft"):
        trainer = side_of(job(side, family, folder, lora_r=2)).trainer
        trained = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
        assert trained and all("lora" in name for name in trained)


def test_tokens_come_in_the_order_of_the_cache(folder: Path) -> None:
    cached = CacheDataset(str(folder / "cache"))
    rows = TokenRows(cached)
    assert len(rows) == len(cached) == 9
    assert (rows.identities() == cached.identities()).all()
    for i in range(9):
        assert rows[i].input_ids.tolist() == cached.record(i).input_ids.tolist()
        assert len(rows[i].logits.ids) == 0
