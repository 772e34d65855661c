"""Where settings come from: flag > environment > YAML > default; both spellings of a name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from tiny import Family, Ran

from cachekd.config import SelectionConfig

Run = Callable[..., Ran]


@pytest.fixture
def dry(cachekd: Run, family: Family, data: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A dry run's report; the bound of bytes tells which k was in force."""

    def run(*flags: object) -> dict[str, Any]:
        base = ["--teacher", family.teacher, "--data", data, "--cache", tmp_path / "cache"]
        ran = cachekd("precompute", *base, "--dry-run", "--json", *flags)
        assert ran.code == 0, ran.err
        return ran.json

    return run


def test_flag_over_environment_over_yaml_over_default(
    dry: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("logits-top-k: 32\n")
    default = dry()["bytes_at_most"]
    from_yaml = dry("--config", config)["bytes_at_most"]
    monkeypatch.setenv("CACHEKD_LOGITS_TOP_K", "16")
    from_environment = dry("--config", config)["bytes_at_most"]
    from_flag = dry("--config", config, "--logits-top-k", 8)["bytes_at_most"]
    assert default > from_yaml > from_environment > from_flag


def test_underscores_are_hyphens(dry: Callable[..., dict[str, Any]]) -> None:
    assert dry("--logits_top_k", 8) == dry("--logits-top-k=8")


def test_a_whole_run_from_yaml(cachekd: Run, family: Family, data: Path, tmp_path: Path) -> None:
    capture, train = tmp_path / "capture.yaml", tmp_path / "train.yaml"
    capture.write_text(
        f"teacher: {family.teacher}\ndata: {data}\ncache: {tmp_path / 'cache'}\n"
        "temperatures: [1, 2.5]\nlogits_top_p: 1\n"
    )
    made = cachekd("precompute", "--config", capture, "--json")
    assert made.code == 0, made.err
    train.write_text(
        f"cache: {tmp_path / 'cache'}\nstudent: {family.student}\n"
        f"output_dir: {tmp_path / 'out'}\ntemperature: 2.5\nloss: {{ce: 0.5, kd: 0.5}}\n"
        "learning_rate: 1e-3\ntraining:\n  max_steps: 2\n  use_cpu: true\n"
    )
    trained = cachekd("train", "--config", train, "--json", "--logging-steps", 1)
    assert trained.code == 0, trained.err
    report = trained.json
    assert report["config"]["objective_options"] == {
        "temperature": 2.5,
        "loss": {"ce": 0.5, "kd": 0.5},
    }
    assert report["training_arguments"]["learning_rate"] == 1e-3
    assert {"loss", "kl", "ce", "tail_mass"} <= report["history"][0].keys()


def test_columns_can_be_mapped(cachekd: Run, family: Family, tmp_path: Path) -> None:
    from tiny import write_rows

    rows = [{"q": f"the old cat {i}", "a": "sleeps", "topic": "animals"} for i in range(3)]
    data = write_rows(tmp_path / "qa.jsonl", rows)
    flags = ["--teacher", family.teacher, "--data", data, "--cache", tmp_path / "cache"]
    flags += ["--columns", "instruction=q,output=a", "--domain-column", "topic"]
    assert cachekd("precompute", *flags).code == 0
    shown = cachekd("inspect", tmp_path / "cache", "--record", 1, "--json").json
    assert shown["domain"] == "animals" and shown["prompt_length"] > 1


def test_json_is_exactly_one_object(
    cachekd: Run, family: Family, data: Path, tmp_path: Path
) -> None:
    flags = ["--teacher", family.teacher, "--data", data, "--cache", tmp_path / "cache", "--json"]
    ran = cachekd("precompute", *flags)
    assert ran.json["samples"] == 30
    assert "tokens/s" in ran.err and " s left" in ran.err


@pytest.mark.parametrize(("text", "step"), [("1/24", 1 / 24), ("0.125", 0.125), ("5e-2", 0.05)])
def test_a_fraction_is_a_number(text: str, step: float) -> None:
    options = importlib.import_module("cachekd_cli.options")
    (setting,) = (o for o in options.options_of(SelectionConfig) if o.name == "logits_step")
    assert setting.type.convert(text, setting, None) == step
    given = {"logits_values": "sqrt", "logits_step": text}
    assert options.values_of(SelectionConfig, {}, given)["logits_step"] == step
    for wrong in ("1/0", "a/b", "one"):
        with pytest.raises(click.BadParameter, match="expected a number"):
            setting.type.convert(wrong, setting, None)
