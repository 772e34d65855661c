"""Resuming where there is nothing left to train, or where rows would be other rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TRAINING, weights
from tiny import Family

import cachekd
from cachekd import TrainConfig
from cachekd.errors import MismatchError


def _train(family: Family, made: Any, out: Path, training: dict[str, Any], **further: Any) -> Any:
    return cachekd.train(
        TrainConfig(
            cache=(str(made.cache),),
            student=str(family.student),
            output_dir=str(out),
            training={**TRAINING, "max_steps": 3, "save_strategy": "steps", "save_steps": 1}
            | training,
            **further,
        )
    )


def test_a_run_whose_last_step_is_saved_is_ended_and_not_trained(
    family: Family, made: Any, tmp_path: Path
) -> None:
    """As after a kill between the last checkpoint and the end."""
    _train(family, made, tmp_path, {})
    before = weights(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    report = _train(family, made, tmp_path, {"resume_from_checkpoint": True})
    assert report["steps"] == 3 and report["status"] == "done"
    after = weights(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("training", "further", "message"),
    [
        ({}, {"completion_only_loss": False}, "loss_mask"),
        ({}, {"max_length": 64}, "max_length"),
        ({"seed": 8}, {}, "order seed"),
        ({"data_seed": 1}, {}, "order seed"),
    ],
)
def test_other_rows_or_another_order_are_refused(
    family: Family,
    made: Any,
    tmp_path: Path,
    training: dict[str, Any],
    further: dict[str, Any],
    message: str,
) -> None:
    _train(family, made, tmp_path, {})
    with pytest.raises(MismatchError, match=message):
        _train(family, made, tmp_path, {"resume_from_checkpoint": True, **training}, **further)
