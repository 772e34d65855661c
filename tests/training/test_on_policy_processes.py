"""Two processes answer their own prompts, and train as one does that answers all of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import Family, chat_rows, write_rows
from together import together

MINILLM = ("--objective", "minillm", "--collect", 8, "--inner-epochs", 1, "--support", 4)
SHARDED = ("--fsdp", "true")


def _train(
    family: Family, data: Path, out: Path, processes: int, *further: object
) -> dict[str, Any]:
    flags = ["--data", data, "--student", family.student, "--output-dir", out]
    flags += ["--teacher", family.teacher, "--max-new-tokens", 6, "--max-steps", 4]
    flags += ["--use-cpu", "true", "--logging-steps", 1, "--learning-rate", 0.01]
    flags += ["--per-device-train-batch-size", 4 // processes, "--save-steps", 2, *further]
    ended = together(processes, out.parent / f"{out.name}-said", "train", *flags)
    assert [one.code for one in ended] == [0] * processes, ended[0].err[-3000:]
    found: dict[str, Any] = json.loads((out / "run.json").read_text())
    return found


def _assert_same(left: Path, right: Path, after: int = 0) -> None:
    one, two = (json.loads((out / "run.json").read_text()) for out in (left, right))
    for name in ("rollouts", "rollout_tokens"):
        assert one["rollouts"][name] == two["rollouts"][name] > 0
    rows = [
        [row for row in run["history"] if "grad_norm" in row and row["step"] > after]
        for run in (one, two)
    ]
    assert len(rows[0]) == 4 - after
    for alone, both in zip(*rows, strict=True):
        assert alone["loss"] == pytest.approx(both["loss"], rel=1e-3)
        if "rollout_reverse_kl" in alone:
            assert alone["rollout_reverse_kl"] == pytest.approx(
                both["rollout_reverse_kl"], rel=1e-3
            )
    weights, others = (_weights(out) for out in (left, right))
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], atol=2e-4, rtol=1e-3)


def _weights(out: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in out.glob("*.safetensors") for k, v in load_file(path).items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ("--objective", "gkd", "--lmbda", 0.6),
        ("--objective", "imitkd", "--lmbda", 0.4),
        MINILLM,
        ("--objective", "multi_granularity", "--chunker", "adjacent"),
    ],
    ids=["gkd", "imitkd", "minillm", "multi_granularity"],
)
def test_two_processes_train_as_one(
    family: Family, tmp_path: Path, flags: tuple[object, ...]
) -> None:
    """Replicated, and with a student whose weights are gathered to write and then sharded again."""
    data = write_rows(tmp_path / "data.jsonl", chat_rows(16))
    one = tmp_path / "one"
    _train(family, data, one, 1, *flags)
    for name, how in (("replicated", ()), ("sharded", SHARDED)):
        _train(family, data, tmp_path / name, 2, *how, *flags)
        _assert_same(one, tmp_path / name)


@pytest.mark.slow
def test_an_adapter_that_is_sharded_writes_and_goes_on(family: Family, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", chat_rows(16))
    flags = (*MINILLM, "--lora-r", 4, "--lora-dropout", 0)
    one, sharded = tmp_path / "one", tmp_path / "sharded"
    _train(family, data, one, 1, *flags)
    _train(family, data, sharded, 2, *SHARDED, *flags)
    _assert_same(one, sharded)
    checkpoint = ("--resume-from-checkpoint", sharded / "checkpoint-2")
    _train(family, data, sharded, 2, *SHARDED, *flags, *checkpoint)
    _assert_same(one, sharded, after=2)


@pytest.mark.slow
def test_another_number_of_processes_goes_on_within_a_collection(
    family: Family, tmp_path: Path
) -> None:
    """All prompts are one collection, of which half is trained on when the number changes."""
    data = write_rows(tmp_path / "data.jsonl", chat_rows(16))
    flags = (*MINILLM, "--collect", 16)
    one, grown, shrunk = (tmp_path / name for name in ("one", "grown", "shrunk"))
    _train(family, data, one, 1, *flags)
    shutil.copytree(one, grown)
    _train(family, data, shrunk, 2, *flags)
    for out, then in ((grown, 2), (shrunk, 1)):
        checkpoint = ("--resume-from-checkpoint", out / "checkpoint-2")
        _train(family, data, out, then, *flags, *checkpoint)
        _assert_same(one, out, after=2)
        left = {path.name for path in (out / "checkpoint-4").glob("rollouts_*")}
        assert left == {f"rollouts_{rank}.json" for rank in range(then)}
