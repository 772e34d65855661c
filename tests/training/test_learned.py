"""What an objective learns: its own group, saved and restored, equal in every process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from weighing import Weighing

import cachekd
from cachekd.config import TrainConfig
from cachekd.errors import ConfigError, Incomplete
from cachekd.training import learned

Make = Callable[..., TrainConfig]
OBJECTIVE = {"objective": "weighing:Weighing", "objective_learning_rate": 0.05}


def _all_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors") | load_file(folder / learned.FILE)


def _same(left: Path, right: Path) -> bool:
    first, second = _all_of(left), _all_of(right)
    return all(torch.equal(first[name], second[name]) for name in first)


def test_parameters_are_learned_at_their_own_rate_without_decay(
    config: Make, tmp_path: Path
) -> None:
    once = {"max_steps": 1, "logging_steps": 1, "save_strategy": "no"}
    once |= {"optim": "sgd", "weight_decay": 0.5, "lr_scheduler_type": "constant"}
    report = cachekd.train(config(**OBJECTIVE, training=once))
    a = torch.tensor(0.25, dtype=torch.float64)
    loss = report["history"][0]["loss"]  # exp(-a) * inner + a
    inner = (loss - a) * torch.exp(a)
    expected = a - 0.05 * (1 - torch.exp(-a) * inner)
    assert load_file(tmp_path / "out" / learned.FILE)["a"].item() == pytest.approx(
        expected.item(), abs=1e-6
    )


def test_interrupted_run_continues_bit_for_bit(
    config: Make, tmp_path: Path, interrupt: Callable[[int], None]
) -> None:
    cachekd.train(config("whole", **OBJECTIVE))
    interrupt(3)
    with pytest.raises(Incomplete):
        cachekd.train(config("parts", **OBJECTIVE))
    assert (tmp_path / "parts" / "checkpoint-3" / learned.FILE).exists()
    cachekd.train(config("parts", **OBJECTIVE, training={"resume_from_checkpoint": True}))
    assert _same(tmp_path / "whole", tmp_path / "parts")
    assert load_file(tmp_path / "whole" / learned.FILE)["a"].item() != 0.25


def test_the_best_student_comes_with_what_was_learned_then(
    config: Make, made: Any, tmp_path: Path, interrupt: Callable[[int], None]
) -> None:
    best = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "load_best_model_at_end": True,
        "greater_is_better": True,  # the loss falls, so that the first is taken
    }
    settings = {**OBJECTIVE, "eval_cache": str(made.heldout_cache)}
    report = cachekd.train(config("whole", **settings, training=best))
    assert report["best_step"] == 1
    assert _same(tmp_path / "whole", tmp_path / "whole" / "checkpoint-1")
    assert not _same(tmp_path / "whole", tmp_path / "whole" / "checkpoint-6")
    interrupt(4)
    with pytest.raises(Incomplete):
        cachekd.train(config("parts", **settings, training=best))
    resume = best | {"resume_from_checkpoint": True}
    cachekd.train(config("parts", **settings, training=resume))
    assert _same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(b"{}"), "cannot be read"),
        (lambda path: save_file({"b": torch.zeros(2)}, path), r"expected a \[\]; found b \[2\]"),
    ],
)
def test_a_missing_or_misfitting_file_is_refused(
    config: Make,
    tmp_path: Path,
    interrupt: Callable[[int], None],
    damage: Callable[[Path], None],
    message: str,
) -> None:
    interrupt(2)
    with pytest.raises(Incomplete):
        cachekd.train(config(**OBJECTIVE))
    checkpoint = tmp_path / "out" / "checkpoint-2"
    damage(checkpoint / learned.FILE)
    with pytest.raises(ConfigError, match=message) as caught:
        learned.restore(Weighing(Weighing.Options()).module, checkpoint)
    assert str(checkpoint / learned.FILE) in str(caught.value)


def test_buffers_and_tied_values_are_kept(tmp_path: Path) -> None:
    module = torch.nn.BatchNorm1d(3)
    module(torch.randn(4, 3))
    module.tied = module.weight
    learned.save(module, tmp_path)
    fresh = torch.nn.BatchNorm1d(3)
    fresh.tied = fresh.weight
    learned.restore(fresh, tmp_path)
    assert torch.equal(fresh.running_mean, module.running_mean)
    assert fresh.running_mean.abs().max() > 0
