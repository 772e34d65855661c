"""On-policy runs from end to end, on the tiny family: they train, resume, and ask nothing twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import weights
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd.config import TrainConfig
from cachekd.errors import Incomplete

NEW = 6
METHODS: dict[str, dict[str, Any]] = {
    "gkd": {"lmbda": 0.5},
    "imitkd": {"lmbda_schedule": "linear"},
    "distillm": {"lmbda": 0.8, "replay": 8},
    "minillm": {"collect": 8, "inner_epochs": 2, "support": 4},
    "multi_granularity": {"chunker": "adjacent", "inputs": 8, "hidden": 8},
}
Make = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("live") / "data.jsonl", chat_rows(16))


@pytest.fixture
def live(family: Family, data: Path, tmp_path: Path) -> Make:
    """Settings of six steps; keywords replace them, ``training`` and ``options`` are merged."""

    def make(objective: str, out: str = "out", **changes: Any) -> TrainConfig:
        options = {"max_new_tokens": NEW, **METHODS[objective], **changes.pop("options", {})}
        training = {
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            **changes.pop("training", {}),
        }
        settings: dict[str, Any] = {
            "data": (str(data),),
            "teacher": str(family.teacher),
            "student": str(family.student),
            "output_dir": str(tmp_path / out),
            "logits_top_k": 16,
            "objective": objective,
            "objective_options": options,
            "training": training,
            **changes,
        }
        return TrainConfig(**settings)

    return make


def same(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize("objective", METHODS)
def test_a_run_trains_and_says_what_it_asked(live: Make, family: Family, objective: str) -> None:
    config = live(objective)
    report = cachekd.train(config)
    found = report["rollouts"]
    assert report["steps"] == 6 and not same(Path(config.output_dir), family.student)
    assert found["rollouts"] > 0 and found["rollout_tokens"] <= NEW * found["rollouts"]
    scores = found["scores"]
    assert 0 < scores["rows"] <= scores["rows_cached"] + scores["rows_scored"]
    assert scores["teacher_tokens"] > 0 and found["seconds"]["generate"] > 0
    rows = [row for row in report["history"] if "rollout_length" in row]
    assert rows and all(0 < row["rollout_length"] <= NEW for row in rows)
    assert all(row["rollout_teacher_nll"] > 0 for row in rows)
    written = json.loads((Path(config.output_dir) / "run.json").read_text())
    assert written["rollouts"] == found and written["scores_id"] == report["scores_id"]
    page = (Path(config.output_dir) / "report.html").read_text()
    assert "Text of the student" in page and "rollout length" in page


@pytest.mark.parametrize("objective", METHODS)
def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(
    live: Make, interrupt: Callable[[int], None], objective: str
) -> None:
    whole = cachekd.train(live(objective, "whole"))
    interrupt(3)
    with pytest.raises(Incomplete):
        cachekd.train(live(objective, "stopped"))
    resumed = cachekd.train(live(objective, "stopped", training={"resume_from_checkpoint": True}))
    assert same(*(Path(report["output_dir"]) for report in (whole, resumed)))
    for name in ("rollouts", "rollout_tokens", "schedule"):
        assert resumed["rollouts"][name] == whole["rollouts"][name]
    one, other = (report["rollouts"]["scores"] for report in (whole, resumed))
    assert one["teacher_tokens"] == other["teacher_tokens"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "training"),
    [
        ("distillm", {"gradient_accumulation_steps": 2}),
        ("minillm", {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
        ("distillm", {"dataloader_num_workers": 1}),
    ],
)
@pytest.mark.parametrize("steps", [2, 4])
def test_a_stop_at_any_step_changes_nothing(
    live: Make,
    interrupt: Callable[[int], None],
    objective: str,
    training: dict[str, Any],
    steps: int,
) -> None:
    """With 16 prompts an epoch ends at step 4, or, accumulated, at step 2."""
    whole = cachekd.train(live(objective, "whole", training=training))
    interrupt(steps)
    with pytest.raises(Incomplete):
        cachekd.train(live(objective, "stopped", training=training))
    again = {**training, "resume_from_checkpoint": True}
    resumed = cachekd.train(live(objective, "stopped", training=again))
    assert resumed["steps"] == 6
    assert same(*(Path(report["output_dir"]) for report in (whole, resumed)))


@pytest.mark.parametrize("objective", ["gkd", "minillm", "multi_granularity"])
def test_the_same_run_again_asks_no_teacher(live: Make, tmp_path: Path, objective: str) -> None:
    folder = str(tmp_path / "scores")
    first = cachekd.train(live(objective, "first", score_cache=folder))
    second = cachekd.train(live(objective, "second", score_cache=folder))
    assert first["rollouts"]["scores"]["teacher_tokens"] > 0
    assert second["rollouts"]["scores"]["teacher_tokens"] == 0
    assert second["rollouts"]["scores"]["hit_rate"] == 1
    assert same(Path(first["output_dir"]), Path(second["output_dir"]))


def test_inner_epochs_and_replays_ask_no_teacher(live: Make) -> None:
    report = cachekd.train(live("minillm"))
    found = report["rollouts"]
    assert found["fresh_sequences"] == found["rollouts"] == 16  # two collections of eight
    assert found["scores"]["documents"] == 16 and found["replay_sequences"] == 16


def test_scrg_is_scored_behind_its_shared_prefix(live: Make) -> None:
    report = cachekd.train(live("multi_granularity", options={"max_new_tokens": 40}))
    assert report["rollouts"]["scores"]["rows_cached"] > 0
    rows = [row for row in report["history"] if "rollout_corrections" in row]
    assert rows and rows[0]["rollout_corrections"] > 0
    off = cachekd.train(live("multi_granularity", "off", options={"scrg": 0}))
    assert off["rollouts"]["scores"]["documents"] == off["rollouts"]["rollouts"]


def test_targets_of_a_cache_serve_the_data_s_share(live: Make, made: Any, family: Family) -> None:
    changes = {"cache": (str(made.cache),), "data": ()}
    report = cachekd.train(live("gkd", options={"lmbda": 0.5}, **changes))
    found = report["rollouts"]
    assert found["data_sequences"] > 0 and found["fresh_sequences"] > 0
    assert found["scores"]["documents"] == found["fresh_sequences"]
    off = cachekd.train(
        live("gkd", "off", options={"lmbda": 0.0}, teacher=None, logits_top_k=64, **changes)
    )
    assert off["rollouts"] is None and off["teacher"] is None


def test_the_adaptive_share_looks_at_held_out_text(live: Make, made: Any) -> None:
    report = cachekd.train(
        live(
            "distillm",
            options={"lmbda": 0.2, "phi_margin": 0.0, "phi_compare": "best", "phi_step": 0.3},
            eval_data=(str(made.heldout_data),),
            training={"eval_strategy": "steps", "eval_steps": 1, "learning_rate": 1.0},
        )
    )
    phi = [row["phi"] for row in report["history"] if "phi" in row]
    assert phi[0] == 0.2 and phi[-1] > 0.2


def test_plain_text_stands_beside(live: Make, tmp_path: Path) -> None:
    text = write_rows(tmp_path / "text.jsonl", [{"text": "the cat sleeps under a tree " * 3}])
    plain = cachekd.train(live("minillm", lm_data=(str(text),)))
    data = cachekd.train(live("minillm", "data"))
    first = [
        next(row["lm_loss"] for row in report["history"] if "lm_loss" in row)
        for report in (plain, data)
    ]
    assert first[0] != first[1]


def test_kept_rollouts_train_a_student_off_policy(
    live: Make, family: Family, tmp_path: Path
) -> None:
    kept = str(tmp_path / "kept")
    report = cachekd.train(live("gkd", options={"lmbda": 1.0}, keep_rollouts=kept))
    cache = cachekd.open_cache(kept)
    assert len(cache) == report["kept_rollouts"]["samples"] == report["rollouts"]["rollouts"]
    assert cache[0].prompt_length and cache.identity.source == report["teacher"]
    off = cachekd.train(
        TrainConfig(
            cache=(kept,),
            student=str(family.student),
            output_dir=str(tmp_path / "off"),
            training={"max_steps": 2, "use_cpu": True, "disable_tqdm": True, "logging_steps": 1},
        )
    )
    assert off["steps"] == 2 and off["history"][0]["kl"] > 0


def test_lora_students_write_too(live: Make) -> None:
    report = cachekd.train(live("gkd", options={"lmbda": 1.0}, lora_r=2))
    assert report["rollouts"]["rollouts"] == 24
    assert (Path(report["output_dir"]) / "adapter_model.safetensors").exists()


def test_a_long_collection_says_how_far_it_is(live: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from cachekd.training import on_policy

    monkeypatch.setattr(on_policy, "_SAY_SECONDS", 0.0)
    rows: list[dict[str, Any]] = []
    config = live("minillm", options={"inner_epochs": 1}, score_batch_tokens=64)
    cachekd.train(config, progress=lambda step, last, row: rows.append(dict(row)))
    told = [row["written"] for row in rows if "written" in row]
    assert told[0] < 8 and max(told) == 8 and told.count(8) == 3  # collections


def test_a_collection_of_one_batch(live: Make) -> None:
    report = cachekd.train(live("minillm", options={"collect": 0, "inner_epochs": 2}))
    assert report["rollouts"]["rollouts"] == 12 and report["rollouts"]["replay_sequences"] == 12
    rows = [row for row in report["history"] if "advantage_square" in row]
    assert len(rows) == 6 and all(row["advantage_square"] > 0 for row in rows)


def test_the_token_is_written_nowhere(live: Make) -> None:
    config = live("gkd", teacher_token="a-secret-token")
    report = cachekd.train(config)
    files = [path for path in Path(config.output_dir).rglob("*") if path.is_file()]
    assert files and not any(b"a-secret-token" in path.read_bytes() for path in files)
    assert "a-secret-token" not in str(report)
