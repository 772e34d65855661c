"""A run from a real cache to a saved student: record, refusals, interruption, resuming."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd.config import PrecomputeConfig, TrainConfig
from cachekd.errors import CachekdError, ConfigError, Incomplete, MismatchError, UnsealedCache
from cachekd.evaluation.heldout import heldout_kl


@pytest.fixture(scope="module")
def caches(family: Family, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two caches with other samples."""
    root = tmp_path_factory.mktemp("caches")
    found = {}
    for name, first in (("one", 0), ("two", 50)):
        data = write_rows(root / f"{name}.jsonl", chat_rows(16, first))
        found[name] = str(root / name)
        cachekd.precompute(
            PrecomputeConfig(
                teacher=str(family.teacher),
                data=(str(data),),
                cache=found[name],
                dtype="float32",
                device="cpu",
                check_disk=False,
            )
        )
    return found


def _config(family: Family, caches: dict[str, str], out: Path, **changes: Any) -> TrainConfig:
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
        "cache": (caches["one"],),
        "student": str(family.student),
        "output_dir": str(out),
        "objective_options": {"temperature": 2.0},
        "training": training,
        **changes,
    }
    return TrainConfig(**settings)


def _same_weights(left: Path, right: Path) -> bool:
    from safetensors.torch import load_file

    first, second = (load_file(folder / "model.safetensors") for folder in (left, right))
    return all(torch.equal(first[name], second[name]) for name in first)


def test_run_leaves_a_plain_student_and_its_record(
    family: Family, caches: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    start = heldout_kl(AutoModelForCausalLM.from_pretrained(family.student), caches["two"])
    config = _config(
        family,
        caches,
        out,
        cache=(f"main={caches['one']}", f"more={caches['two']}"),
        eval_cache=caches["two"],
        training={"max_steps": 20},
    )
    report = cachekd.train(config)
    assert capsys.readouterr().out == ""
    assert report == json.loads((out / "run.json").read_text())
    assert (report["status"], report["steps"]) == ("done", 20)
    assert [cache["name"] for cache in report["caches"]] == ["main", "more"]
    opened = cachekd.open_cache(caches["one"])
    assert report["caches"][0]["root"] == opened.root
    assert report["caches"][0]["capture_id"] == opened.identity.capture_id
    assert report["counts"]["samples"] == 32
    assert report["training_arguments"]["learning_rate"] == 1e-2
    assert report["config"]["objective_options"] == {"temperature": 2.0}
    assert {"python", "torch", "transformers", "cachekd"} <= set(report["versions"])
    assert {"loss", "kl", "ce", "tail_mass"} <= set(report["history"][0])
    model = AutoModelForCausalLM.from_pretrained(out)
    end = heldout_kl(model, caches["two"], temperature=2.0)
    assert report["final_eval"]["eval_kl"] == pytest.approx(end.kl, rel=1e-5)
    assert heldout_kl(model, caches["two"]).kl < start.kl
    assert len(AutoTokenizer.from_pretrained(out)) == family.vocab


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"training": {"learning_rat": 1.0}}, ConfigError, "Did you mean 'learning_rate'"),
        ({"training": {"eval_strategy": "steps"}}, ConfigError, "eval_cache"),
        ({"training": {"optim": "nonsense"}}, ConfigError, "nonsense"),
        ({"objective": "kdd"}, ConfigError, "Did you mean 'kd'"),
        ({"objective_options": {"temperature": 3.0}}, ConfigError, "--temperatures 3"),
        ({"max_length": 4096}, ConfigError, "at most 128"),
        ({"cache": ("same=one", "same=two")}, ConfigError, "'same'"),
        ({"student": "no/such/student"}, CachekdError, "no such"),
        ({"cache": ("nowhere",)}, CachekdError, "nowhere"),
        ({"training": {"resume_from_checkpoint": "nowhere"}}, ConfigError, "nowhere"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(
    family: Family,
    caches: dict[str, str],
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    out = tmp_path / "out"
    named = changes.get("cache", ())
    if "=" in "".join(named):
        parts = [item.split("=") for item in named]
        changes = {"cache": tuple(f"{name}={caches[which]}" for name, which in parts)}
    with pytest.raises(error, match=message):
        cachekd.train(_config(family, caches, out, **changes))
    assert not out.exists()


def test_output_of_another_run_is_not_overwritten(
    family: Family, caches: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    cachekd.train(_config(family, caches, out, training={"max_steps": 1}))
    written = (out / "run.json").read_bytes()
    with pytest.raises(ConfigError, match=r"holds another run.*resume_from_checkpoint"):
        cachekd.train(_config(family, caches, out))
    with pytest.raises(ConfigError, match="is the student itself"):
        cachekd.train(_config(family, caches, family.student))
    assert (out / "run.json").read_bytes() == written


def test_damaged_weights_are_a_clear_error(
    family: Family, caches: dict[str, str], tmp_path: Path, copy_of: Any
) -> None:
    student = copy_of(family.student, "damaged")
    (student / "config.json").write_text(
        json.dumps(json.loads((student / "config.json").read_text()) | {"model_type": "nonsense"})
    )
    with pytest.raises(ConfigError, match="cannot be loaded"):
        cachekd.train(_config(family, caches, tmp_path / "out", student=str(student)))


def test_unsealed_cache_needs_partial(
    family: Family, caches: dict[str, str], tmp_path: Path
) -> None:
    import shutil

    unsealed = Path(shutil.copytree(caches["one"], tmp_path / "unsealed"))
    for path in unsealed.glob("manifest*"):
        path.unlink()
    config = _config(family, caches, tmp_path / "out", cache=(str(unsealed),))
    with pytest.raises(UnsealedCache, match="--partial"):
        cachekd.train(config)
    report = cachekd.train(
        _config(family, caches, tmp_path / "out", cache=(str(unsealed),), partial=True)
    )
    assert report["caches"][0]["sealed"] is False
    assert report["counts"]["samples"] == 16


def test_packed_run(family: Family, caches: dict[str, str], tmp_path: Path) -> None:
    config = _config(
        family,
        caches,
        tmp_path / "out",
        packing=True,
        training={"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 2},
    )
    report = cachekd.train(config)
    padded_steps = 16 / 2
    assert 0 < report["steps"] < padded_steps
    assert report["status"] == "done"


def test_interrupted_run_continues_to_the_same_weights(
    family: Family, caches: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cachekd.training.trainer import DistillTrainer

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    cachekd.train(_config(family, caches, whole))
    step = DistillTrainer.training_step

    def interrupt(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(DistillTrainer, "training_step", interrupt)
        with pytest.raises(Incomplete, match="--resume-from-checkpoint true"):
            cachekd.train(_config(family, caches, parts))
    assert json.loads((parts / "run.json").read_text())["status"] == "interrupted"
    resume = {"resume_from_checkpoint": "true"}
    with pytest.raises(MismatchError, match="other samples"):
        cachekd.train(_config(family, caches, parts, cache=(caches["two"],), training=resume))
    report = cachekd.train(_config(family, caches, parts, training=resume))
    assert (report["status"], report["steps"]) == ("done", 6)
    assert _same_weights(whole, parts)


def test_resuming_before_the_first_checkpoint_starts_at_the_beginning(
    family: Family, caches: dict[str, str], tmp_path: Path
) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    cachekd.train(_config(family, caches, whole))
    again.mkdir()
    report = cachekd.train(
        _config(family, caches, again, training={"resume_from_checkpoint": True})
    )
    assert report["steps"] == 6
    assert _same_weights(whole, again)


def test_resuming_with_another_objective_is_refused(
    family: Family, caches: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    cachekd.train(_config(family, caches, out))
    changed = _config(
        family,
        caches,
        out,
        training={"resume_from_checkpoint": True, "max_steps": 8},
        objective_options={"temperature": 1.0},
    )
    with pytest.raises(MismatchError, match=r"objective_options\.temperature: 2\.0 / 1\.0"):
        cachekd.train(changed)
