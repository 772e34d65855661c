"""Real caches of the tiny family, and settings of a short run on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from runs import capture
from tiny import Family, chat_rows, write_rows

from cachekd.config import TrainConfig


@dataclass(frozen=True)
class Made:
    """What a run can be given."""

    cache: Path
    heldout_cache: Path
    heldout_data: Path


@pytest.fixture(scope="session")
def made(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("training")
    data = write_rows(root / "data.jsonl", chat_rows(16))
    heldout = write_rows(root / "heldout.jsonl", chat_rows(6, 70))
    capture(family, data, root / "cache")
    capture(family, heldout, root / "heldout-cache")
    return Made(root / "cache", root / "heldout-cache", heldout)


@pytest.fixture
def config(family: Family, made: Made, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Settings of six steps; keywords replace them, ``training`` is merged."""

    def make(out: str = "out", **changes: Any) -> TrainConfig:
        training = {
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 2,
            "use_cpu": True,
            "disable_tqdm": True,
            **changes.pop("training", {}),
        }
        settings: dict[str, Any] = {
            "cache": (str(made.cache),),
            "student": str(family.student),
            "output_dir": str(tmp_path / out),
            "training": training,
            **changes,
        }
        return TrainConfig(**settings)

    return make


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Any]:
    """Makes a run stop as on SIGTERM, once, after this many steps."""
    import signal

    from cachekd.training.trainer import DistillTrainer

    step = DistillTrainer.training_step

    def after(steps: int) -> None:
        def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == steps - 1:
                monkeypatch.setattr(DistillTrainer, "training_step", step)
                signal.raise_signal(signal.SIGTERM)
            return step(self, *args, **kwargs)

        monkeypatch.setattr(DistillTrainer, "training_step", stop)

    return after
