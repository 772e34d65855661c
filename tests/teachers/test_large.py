"""Teachers that one device does not hold: split over processes, or kept by the CPU and the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import Family, Ran, chat_rows, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.errors import ConfigError
from cachekd.store.io import Location
from cachekd.store.state import read_state
from cachekd.teachers._loading import own_device


def config(family: Family, data: Path, cache: Path, **further: Any) -> PrecomputeConfig:
    settings = {"threads": 1, "unit_tokens": 200, "batch_tokens": 100, "logits_values": "float32"}
    return PrecomputeConfig(
        teacher=str(family.teacher), data=(str(data),), cache=str(cache), **{**settings, **further}
    )


def worst(left: Path, right: Path) -> float:
    """Largest difference of two captures of the same documents, in nats."""
    one, other = (cachekd.open_cache(str(path)) for path in (left, right))
    assert one.sample_ids == other.sample_ids
    return max(
        float(np.abs(a.logits.next_logprob - b.logits.next_logprob).max())
        for a, b in zip(one, other, strict=True)
    )


def test_weights_that_no_memory_holds_come_from_disk(
    family: Family, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = cachekd.precompute(config(family, data, tmp_path / "whole"))
    settings = {
        "device_map": "auto",
        "max_memory": {"cpu": "30KB"},
        "offload_folder": str(tmp_path / "offload"),
    }
    spread = cachekd.precompute(config(family, data, tmp_path / "spread", **settings))
    assert "offloaded to the disk" in caplog.text, "else the test would prove nothing"
    assert spread["capture_id"] == whole["capture_id"]
    assert worst(tmp_path / "whole", tmp_path / "spread") < 2e-5


def test_limits_belong_to_a_device_map(family: Family) -> None:
    with pytest.raises(ConfigError, match="belong to a device map"):
        config(family, Path("d"), Path("c"), max_memory={"cpu": "1GB"})


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    assert own_device() == "cuda"
    monkeypatch.setenv("SLURM_LOCALID", "0")
    assert own_device() == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device() == "cuda:1" and taken == [0, 1]


def split_command(family: Family, data: Path, cache: Path) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "cachekd_cli", "precompute", "--teacher", str(family.teacher), "--json"]
    command += ["--data", str(data), "--cache", str(cache), "--tp-plan", "auto", "--threads", "1"]
    return [*command, "--batch-tokens", "100", "--logits-values", "float32"]


@pytest.mark.slow
def test_two_processes_hold_one_teacher(
    family: Family, copy_of: Callable[[Path, str], Path], tmp_path: Path
) -> None:
    """Gloo on the CPU; the second run finds everything done, and loads nothing."""
    from tiny import save_model

    teacher = copy_of(family.teacher, "teacher")
    save_model(teacher, family.vocab, width=32, layers=2, seed=1, kv_heads=2)
    split = Family(teacher, family.student, family.vocab)
    data = write_rows(tmp_path / "few.jsonl", chat_rows(12))
    whole = cachekd.precompute(config(split, data, tmp_path / "whole"))
    for calls in (True, False):
        done = subprocess.run(
            split_command(split, data, tmp_path / "split"),
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        reports = [json.loads(part) for part in _objects(done.stdout)]
        (led,) = (report for report in reports if "root" in report)
        (followed,) = (report for report in reports if "batches_followed" in report)
        assert led["capture_id"] == whole["capture_id"]
        assert bool(followed["batches_followed"]) == calls
    assert worst(tmp_path / "whole", tmp_path / "split") < 2e-5
    units = read_state(Location(str(tmp_path / "split"))).units.values()
    assert {unit.numerics["tensor_parallel"] for unit in units} == {2}


def _objects(text: str) -> list[str]:
    """JSON objects that stand one after another."""
    decoder, found = json.JSONDecoder(), []
    while text := text.strip():
        _, end = decoder.raw_decode(text)
        found.append(text[:end])
        text = text[end:]
    return found


def test_a_split_teacher_wants_torchrun(
    family: Family,
    data: Path,
    tmp_path: Path,
    cachekd: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    ran = cachekd(
        *("precompute", "--teacher", family.teacher, "--data", data, "--tp-plan", "auto"),
        *("--cache", tmp_path / "cache"),
    )
    assert ran.code == 2 and "expected to be started by torchrun" in ran.err
    assert not (tmp_path / "cache").exists()
