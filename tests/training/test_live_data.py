"""Objectives of caches with a live teacher in the cache's place: the same students."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import capture, weights
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd.config import TrainConfig
from cachekd.errors import ConfigError

Make = Callable[..., TrainConfig]
WHOLE = {"per_device_train_batch_size": 16, "max_steps": 3, "logging_steps": 1}
SHARP = {"learning_rate": 1e-2, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}


@pytest.fixture
def live(family: Family, tmp_path: Path) -> Make:
    """Settings of three steps over the whole of the data, scored live."""

    def make(data: Path, objective: str, out: str = "live", **changes: Any) -> TrainConfig:
        return TrainConfig(
            **{
                "data": (str(data),),
                "teacher": str(family.teacher),
                "student": str(family.student),
                "output_dir": str(tmp_path / out),
                "logits_top_k": 0,
                "objective": objective,
                "training": {**SHARP, **WHOLE},
                **changes,
            }
        )

    return make


@pytest.mark.parametrize("objective", ["kd", "reverse_kl"])
def test_a_live_teacher_on_the_data_gives_the_student_of_its_cache(
    live: Make, config: Make, family: Family, tmp_path: Path, objective: str
) -> None:
    data = write_rows(tmp_path / "data.jsonl", chat_rows(16))
    capture(family, data, tmp_path / "full", logits_selection="full")
    cached = config(
        "cached", cache=(str(tmp_path / "full"),), objective=objective, training=WHOLE | SHARP
    )
    of_cache = cachekd.train(cached)
    of_teacher = cachekd.train(live(data, objective))
    losses = [
        [row["loss"] for row in report["history"] if "loss" in row]
        for report in (of_cache, of_teacher)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][2] < losses[0][0]
    one, other = weights(tmp_path / "cached"), weights(tmp_path / "live")
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=2e-3, msg=name)
    assert of_teacher["rollouts"]["scores"]["rows_scored"] > 0
    assert "rollout_tokens" not in of_teacher["rollouts"]  # the student wrote nothing


@pytest.mark.parametrize(
    ("objective", "options", "said"),
    [
        ("sft", {}, "would never ask a live teacher"),
        ("seqkd", {}, "text that the teacher wrote"),
        ("kd", {"loss": {"attention": 1.0}}, "takes attention"),
        ("dae", {}, "needs a cache called reference"),
    ],
)
def test_what_a_live_teacher_does_not_give(
    live: Make, data: Path, objective: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        cachekd.train(live(data, objective, objective_options=options))
