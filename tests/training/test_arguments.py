"""Fields of TrainingArguments, each through a whole run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import Family

import cachekd
from cachekd.config import TrainConfig
from cachekd.errors import ConfigError
from cachekd.training.arguments import training_arguments

Make = Callable[..., TrainConfig]
UNSAVED = {"save_strategy": "no"}
TOKEN = "hf_0123456789secret"


def _weights(folder: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    return torch.cat([state[name].flatten().float() for name in sorted(state)])


def test_bf16_trains_in_mixed_precision(config: Make, tmp_path: Path) -> None:
    exact = cachekd.train(config("exact", training=UNSAVED))
    mixed = cachekd.train(config("mixed", training=UNSAVED | {"bf16": True}))
    first, second = _weights(tmp_path / "exact"), _weights(tmp_path / "mixed")
    assert 0 < (first - second).abs().mean() < 1e-3
    for one, other in zip(exact["history"], mixed["history"], strict=True):
        if "kl" in one:
            assert other["kl"] == pytest.approx(one["kl"], rel=0.02)


def test_activation_checkpointing_changes_no_weight(config: Make, tmp_path: Path) -> None:
    cachekd.train(config("plain", training=UNSAVED))
    cachekd.train(config("again", training=UNSAVED | {"activation_checkpointing": True}))
    assert torch.allclose(_weights(tmp_path / "plain"), _weights(tmp_path / "again"), atol=1e-7)


@pytest.mark.parametrize("packing", [False, True])
def test_accumulated_batches_are_one(config: Make, tmp_path: Path, packing: bool) -> None:
    whole = UNSAVED | {"per_device_train_batch_size": 4, "optim": "sgd", "max_grad_norm": 0.0}
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    cachekd.train(config("whole", packing=packing, training=whole))
    cachekd.train(config("parts", packing=packing, training=whole | parts))
    assert torch.allclose(_weights(tmp_path / "whole"), _weights(tmp_path / "parts"), atol=1e-6)


class _Reporter(transformers.TrainerCallback):  # type: ignore[misc]
    """Stands for tensorboard, wandb and the like."""

    seen: list[dict[str, float]]

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any
    ) -> None:
        self.seen.append(dict(logs))


def test_reporters_see_the_loss_parts(
    config: Make, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations import integration_utils

    monkeypatch.setattr(_Reporter, "seen", [], raising=False)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", _Reporter)
    monkeypatch.setattr(
        transformers.integrations, "get_available_reporting_integrations", lambda: ["tensorboard"]
    )
    asked = UNSAVED | {"report_to": ["tensorboard"], "eval_strategy": "steps", "eval_steps": 3}
    cachekd.train(config(eval_cache=str(made.heldout_cache), training=asked))
    trained = [row for row in _Reporter.seen if "loss" in row]
    assert len(trained) == 3
    assert all({"kl", "ce", "tail_mass", "learning_rate"} <= set(row) for row in trained)
    assert sum("eval_kl" in row for row in _Reporter.seen) == 2


class _Hub:
    """Stands for the hub: remembers what it is given."""

    def __init__(self) -> None:
        self.uploads: list[tuple[str | None, dict[str, bytes]]] = []

    def create_repo(self, repo: str, **kwargs: Any) -> Any:
        class Url(str):
            repo_id = f"someone/{Path(repo).name}"

        return Url(repo)

    def upload_folder(self, *, folder_path: str, token: str | None, **kwargs: Any) -> Any:
        files = {
            path.name: path.read_bytes() for path in Path(folder_path).iterdir() if path.is_file()
        }
        self.uploads.append((token, files))


def test_student_record_and_report_are_pushed_without_the_token(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = _Hub()
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    monkeypatch.setattr(transformers.Trainer, "create_model_card", lambda *a, **k: None)
    pushing = {"push_to_hub": True, "hub_token": TOKEN, "hub_strategy": "end", "save_steps": 3}
    report = cachekd.train(config(training=pushing))
    ((token, files),) = hub.uploads
    assert token == TOKEN
    assert {"model.safetensors", "tokenizer.json", "run.json", "report.html"} <= set(files)
    assert json.loads(files["run.json"])["status"] == "done"
    assert report["config"]["training"]["hub_token"] == "<HUB_TOKEN>"
    assert TOKEN not in json.dumps(report, default=str)
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path.name


def test_saved_arguments_lose_nothing_but_the_token(config: Make) -> None:
    import copy

    asked = training_arguments(config(training={"hub_token": TOKEN}))
    assert asked.hub_token == TOKEN and copy.deepcopy(asked).hub_token == TOKEN
    assert asked.learning_rate == 1e-2


def test_a_resumed_run_says_when_it_begins_anew(
    config: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        report = cachekd.train(config(training=UNSAVED | {"resume_from_checkpoint": True}))
    assert "holds no whole checkpoint yet: starting at step 0" in caplog.text
    assert report["steps"] == 6


def test_a_caller_with_progress_gets_every_step(
    config: Make, family: Family, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[int, int, dict[str, Any]]] = []
    training = UNSAVED | {"disable_tqdm": True}
    cachekd.train(
        config(training=training),
        progress=lambda step, last, row: seen.append((step, last, dict(row))),
    )
    assert [step for step, _, row in seen if not row] == [0, 1, 2, 3, 4, 5, 6]
    assert {last for _, last, _ in seen} == {6}
    assert [step for step, _, row in seen if "kl" in row] == [2, 4, 6]
    printed = capsys.readouterr()
    assert printed.out == "" and "'loss'" not in printed.err


def test_a_reporter_that_is_not_installed_is_refused(
    config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        transformers.integrations, "get_available_reporting_integrations", lambda: ["wandb"]
    )
    with pytest.raises(ConfigError, match=r"installed \(wandb\); found tensorboard.*pip install"):
        training_arguments(config(training={"report_to": ["tensorboard"]}), own_progress=False)


def test_the_record_has_the_options_that_were_used(config: Make, tmp_path: Path) -> None:
    cachekd.train(config(objective="jsd", objective_options={"beta": 0.25}, training=UNSAVED))
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["objective"]["name"] == "jsd"
    assert run["objective"]["options"]["beta"] == 0.25
    assert run["objective"]["options"]["loss"] == {"ce": 0.1, "kd": 0.9}
    assert "beta" in (tmp_path / "out/report.html").read_text()
