"""Held-out text without a teacher, and stopping by what an evaluation says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Family, write_rows

import cachekd
from cachekd.config import TrainConfig
from cachekd.errors import ConfigError, DataError
from cachekd.evaluation.heldout import heldout_kl
from cachekd.training.base import RunTrainer

Make = Callable[..., TrainConfig]
WORKERS = {"dataloader_num_workers": 2}
EVERY = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no"}


def _reference_ce(model: Any, cache: Path) -> float:
    """Cross entropy of the trained rows in float64, one sample at a time."""
    from cachekd.data.alignment import LossMask, trained_rows

    total, rows = 0.0, 0
    opened = cachekd.open_cache(str(cache))
    for i in range(len(opened)):
        record = opened[i]
        ids = torch.tensor(record.input_ids.tolist())
        trained = trained_rows(record.roles, record.prompt_length, LossMask.AUTO)
        with torch.no_grad():
            log_q = model.double()(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        picked = log_q[torch.arange(len(ids) - 1), ids[1:]][torch.from_numpy(trained)]
        total, rows = total - picked.sum().item(), rows + len(picked)
    return total / rows


def test_text_is_tokenised_as_the_cache_was_and_its_loss_is_exact(
    config: Make, made: Any, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    report = cachekd.train(config(eval_data=(str(made.heldout_data),), training=EVERY))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = _reference_ce(model, made.heldout_cache)
    assert report["final_eval"]["eval_ce"] == pytest.approx(expected, rel=1e-5)
    assert report["final_eval"]["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert report["eval_data"]["samples"] == 6
    rows = heldout_kl(model.float(), made.heldout_cache).rows
    assert report["eval_data"]["trained_rows"] == rows
    assert [row["step"] for row in report["history"] if "eval_ce" in row] == [2, 4, 6]


def test_cache_and_text_together_keep_their_names(config: Make, made: Any) -> None:
    both = {"eval_cache": str(made.heldout_cache), "eval_data": (str(made.heldout_data),)}
    final = cachekd.train(config(**both, training=EVERY | WORKERS))["final_eval"]
    assert final["eval_text_ce"] == pytest.approx(final["eval_ce"], rel=1e-6)
    assert final["eval_text_loss"] == final["eval_text_ce"]
    assert final["eval_loss"] == pytest.approx(0.9 * final["eval_kl"] + 0.1 * final["eval_ce"])


def test_text_is_cut_counted_and_masked_as_the_samples_are(config: Make, tmp_path: Path) -> None:
    rows = [
        {"instruction": "the cat sleeps", "output": "near the old stone road " * 9},
        {"instruction": "the dog waits under the tree " * 9, "output": "a bird"},
    ]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    counts = cachekd.train(
        config(eval_data=(str(data),), max_length=40, training={"save_strategy": "no"})
    )["eval_data"]
    assert counts["samples"] == 1 and counts["dropped"] == {"no response left": 1}
    assert counts["changed"] == {"truncated": 1}
    assert 0 < counts["trained_rows"] < 39


def test_the_clock_and_template_of_the_capture_are_replayed(
    config: Make, made: Any, family: Family, copy_of: Any
) -> None:
    """A student whose own template differs is evaluated on the wording that the cache has."""
    student = copy_of(family.student, "reworded")
    for path in student.glob("chat_template*"):
        path.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    changed = config(
        student=str(student),
        eval_cache=str(made.heldout_cache),
        eval_data=(str(made.heldout_data),),
        training={"max_steps": 1, "save_strategy": "no"},
    )
    final = cachekd.train(changed)["final_eval"]
    assert final["eval_text_ce"] == pytest.approx(final["eval_ce"], rel=1e-6)


def test_unusable_text_is_refused_before_training(config: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        cachekd.train(config(eval_data=(str(tmp_path / "nothing.jsonl"),)))
    plain = write_rows(tmp_path / "plain.jsonl", [{"text": "the cat sleeps"}])
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        cachekd.train(config(eval_data=(str(plain),), assistant_only_loss=True))
    assert not (tmp_path / "out").exists()


def test_a_cache_that_does_not_say_its_wording_is_named() -> None:
    from fakes import FakeCache, record

    from cachekd.training.texts import wording_of_cache

    with pytest.raises(ConfigError, match=r"prompt_template, add_eos, clock.*--eval-cache"):
        wording_of_cache(FakeCache([record([1, 2])]).identity)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """Gives evaluations in training these losses, one after the other."""

    def script(losses: list[float]) -> None:
        means = RunTrainer.evaluation_loop

        def loop(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = means(self, *args, **kwargs)
            if self.is_in_train and kwargs["metric_key_prefix"] == "eval":
                self.scripted = losses[self.state.global_step - 1]
            return result

        def log(self: Any, logs: dict[str, float], *args: Any) -> None:
            if "eval_loss" in logs and self.is_in_train:
                logs["eval_loss"] = self.scripted
            logged(self, logs, *args)

        logged = RunTrainer.log
        monkeypatch.setattr(RunTrainer, "evaluation_loop", loop)
        monkeypatch.setattr(RunTrainer, "log", log)

    return script


STOP = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 6}


def test_stops_early_and_keeps_the_best(
    config: Make, made: Any, tmp_path: Path, scripted: Any
) -> None:
    from safetensors.torch import load_file

    scripted([5.0, 3.0, 3.5, 2.95, 1.0, 1.0])
    both = {"eval_cache": str(made.heldout_cache), "eval_data": (str(made.heldout_data),)}
    stopping = {"early_stopping_patience": 2, "early_stopping_threshold": 0.1}
    report = cachekd.train(config(**both, **stopping, training=STOP))
    # 3.5 is worse than 3.0 and 2.95 better by less than the threshold: two in vain.
    assert (report["steps"], report["status"]) == (4, "done")
    assert report["best_step"] == 4
    out = tmp_path / "out"
    best, saved = (load_file(at / "model.safetensors") for at in (out / "checkpoint-4", out))
    assert all(torch.equal(best[name], saved[name]) for name in best)


def test_the_best_is_an_earlier_one(config: Make, made: Any, tmp_path: Path, scripted: Any) -> None:
    from safetensors.torch import load_file

    scripted([5.0, 3.0, 3.5, 3.2, 1.0, 1.0])
    report = cachekd.train(
        config(eval_data=(str(made.heldout_data),), early_stopping_patience=2, training=STOP)
    )
    assert (report["steps"], report["best_step"]) == (4, 2)
    out = tmp_path / "out"
    best, saved = (load_file(at / "model.safetensors") for at in (out / "checkpoint-2", out))
    last = load_file(out / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(best[name], saved[name]) for name in best)
    assert any(not torch.equal(last[name], saved[name]) for name in best)


def test_patience_goes_on_when_resumed(
    config: Make, made: Any, scripted: Any, interrupt: Any
) -> None:
    from cachekd.errors import Incomplete

    scripted([3.0, 3.5, 3.5, 3.5, 3.5, 3.5])
    settings = {"eval_data": (str(made.heldout_data),), "early_stopping_patience": 3}
    interrupt(3)
    with pytest.raises(Incomplete):
        cachekd.train(config(**settings, training=STOP))
    report = cachekd.train(config(**settings, training=STOP | {"resume_from_checkpoint": True}))
    assert (report["steps"], report["best_step"]) == (4, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "expected something to evaluate on"),
        ({"eval": True}, "Set --eval-strategy steps"),
        ({"eval": True, "patience": 0}, "expected at least 1; found 0"),
        ({"eval": True, "training": {**STOP, "save_strategy": "no"}}, "load_best_model_at_end"),
        ({"eval": True, "training": {**STOP, "save_steps": 3, "eval_steps": 2}}, "multiple"),
        (
            {"eval": True, "training": {**STOP, "metric_for_best_model": "text_ce"}},
            "with one of them it is eval_ce",
        ),
        ({"eval": True, "training": {**STOP, "metric_for_best_model": "rouge"}}, "not among"),
        ({"patience": None, "threshold": 0.5}, "no meaning without early_stopping_patience"),
    ],
)
def test_impossible_stopping_is_refused(
    config: Make, made: Any, changes: dict[str, Any], message: str
) -> None:
    settings: dict[str, Any] = {"early_stopping_patience": changes.get("patience", 1)}
    if "threshold" in changes:
        settings["early_stopping_threshold"] = changes["threshold"]
    if changes.get("eval"):
        settings["eval_data"] = (str(made.heldout_data),)
    with pytest.raises(ConfigError, match=message):
        cachekd.train(config(**settings, training=changes.get("training", {})))


def test_the_users_own_values_win(config: Make, made: Any, tmp_path: Path) -> None:
    own = {"metric_for_best_model": "ce", "load_best_model_at_end": False, "save_strategy": "no"}
    report = cachekd.train(
        config(eval_cache=str(made.heldout_cache), early_stopping_patience=9, training=STOP | own)
    )
    used = report["training_arguments"]
    assert used["metric_for_best_model"] == "ce" and used["greater_is_better"] is False
    assert "load_best_model_at_end" not in used
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["steps"] == 6


@pytest.mark.parametrize("objective", ["jsd", "sft", "skd"])
def test_students_of_any_objective_can_be_compared(
    config: Make, made: Any, tmp_path: Path, objective: str
) -> None:
    from transformers import AutoModelForCausalLM

    options = {"temperature": 1.0} if objective == "skd" else {}
    final = cachekd.train(
        config(
            objective=objective,
            objective_options=options,
            eval_cache=str(made.heldout_cache),
            training=EVERY,
        )
    )["final_eval"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").float()
    expected = heldout_kl(model, made.heldout_cache)
    assert final["eval_kl"] == pytest.approx(expected.kl, rel=1e-4)
    assert final["eval_ce"] == pytest.approx(expected.ce, rel=1e-4)
    assert ("eval_jsd" in final) == (objective == "jsd")
