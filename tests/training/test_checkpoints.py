"""A checkpoint that was not written to its end is passed over, and said to be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cachekd
from cachekd.config import TrainConfig
from cachekd.errors import ConfigError
from cachekd.training.checkpoints import check_whole, last_whole, what_lacks

Make = Callable[..., TrainConfig]
SAVING = {"save_steps": 2, "max_steps": 6}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "no state": lambda at: (at / "trainer_state.json").unlink(),
    "state cut": lambda at: _cut(at / "trainer_state.json"),
    "no weights": lambda at: (at / "model.safetensors").unlink(),
    "weights cut": lambda at: _cut(at / "model.safetensors"),
    "no optimizer": lambda at: (at / "optimizer.pt").unlink(),
    "optimizer cut": lambda at: _cut(at / "optimizer.pt"),
    "scheduler cut": lambda at: _cut(at / "scheduler.pt"),
    "random state cut": lambda at: _cut(at / "rng_state.pth"),
}


@pytest.fixture(scope="module")
def finished(family: Any, made: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with checkpoints 2, 4 and 6."""
    out = tmp_path_factory.mktemp("finished") / "out"
    training = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "use_cpu": True}
    cachekd.train(
        TrainConfig(
            cache=(str(made.cache),),
            student=str(family.student),
            output_dir=str(out),
            training=training | SAVING | {"logging_steps": 2, "disable_tqdm": True},
        )
    )
    return out


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_is_taken(
    finished: Path, copy_of: Any, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    out = copy_of(finished, "out")
    assert last_whole(out) == out / "checkpoint-6"
    DAMAGES[damage](out / "checkpoint-6")
    with caplog.at_level(logging.WARNING):
        assert last_whole(out) == out / "checkpoint-4"
    assert "checkpoint-6 is passed over" in caplog.text
    with pytest.raises(ConfigError, match="checkpoint-6 cannot be continued from"):
        check_whole(out / "checkpoint-6")


def test_numbers_are_compared_as_numbers(finished: Path, copy_of: Any) -> None:
    import shutil

    out = copy_of(finished, "out")
    shutil.copytree(out / "checkpoint-6", out / "checkpoint-10")
    assert last_whole(out) == out / "checkpoint-10"


def test_without_a_whole_one_training_begins_anew(
    finished: Path, copy_of: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    out = copy_of(finished, "out")
    for number in (2, 4, 6):
        (out / f"checkpoint-{number}" / "trainer_state.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert last_whole(out) is None
    assert "starting at step 0" in caplog.text
    assert last_whole(tmp_path / "nothing") is None


def test_a_resumed_run_writes_over_what_was_half_written(
    finished: Path, copy_of: Any, config: Make
) -> None:
    from safetensors.torch import load_file

    out = copy_of(finished, "out")
    (out / "model.safetensors").unlink()
    DAMAGES["optimizer cut"](out / "checkpoint-6")
    DAMAGES["no weights"](out / "checkpoint-6")
    report = cachekd.train(config(training=SAVING | {"resume_from_checkpoint": True}))
    assert report["steps"] == 6
    whole, again = (load_file(at / "model.safetensors") for at in (finished, out))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert what_lacks(out / "checkpoint-6") is None


def test_a_checkpoint_does_not_count_while_it_is_written(
    finished: Path, copy_of: Any, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved over a whole one, as a run does that goes back to an earlier checkpoint."""
    from cachekd.training.trainer import DistillTrainer

    out = copy_of(finished, "out")

    def killed(self: Any, folder: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DistillTrainer, "_save_optimizer_and_scheduler", killed)
    back = {"resume_from_checkpoint": str(out / "checkpoint-2")}
    with pytest.raises(KeyboardInterrupt):
        cachekd.train(config(training=SAVING | back))
    assert last_whole(out) == out / "checkpoint-6"
    assert "not written to its end" in (what_lacks(out / "checkpoint-4") or "")


def test_checkpoints_without_an_optimizer_are_not_continued_from(config: Make) -> None:
    only_model = SAVING | {"save_only_model": True}
    cachekd.train(config(training=only_model))
    with pytest.raises(ConfigError, match="save_only_model hold no optimizer"):
        cachekd.train(config(training=only_model | {"resume_from_checkpoint": True}))
