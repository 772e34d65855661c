"""Benchmarks run, and find what they must on any machine: one loss, whole caches, no leaks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def _quick(script: str) -> dict[str, Any]:
    """Result of a quick run, which saves nothing."""
    before = {path: path.stat().st_mtime_ns for path in (BENCHMARKS / "results").iterdir()}
    command = [sys.executable, str(BENCHMARKS / script), "--quick"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert {path: path.stat().st_mtime_ns for path in (BENCHMARKS / "results").iterdir()} == before
    result: dict[str, Any] = json.loads("{" + f"\n{output}".rpartition("\n{\n")[2])
    return result


@pytest.mark.slow
def test_the_smoke_run_of_training_steps_agrees_and_saves_nothing() -> None:
    (table,) = _quick("bench_train.py")["tables"].values()
    assert table["agreement"]["sft_fused and sft_full"] < 1e-5
    assert table["entries_of_a_row"]["k64"]["least"] == 64
    assert table["over_sft_full"].keys() == table["first_loss"].keys()


@pytest.mark.reliability
def test_a_short_soak_leaves_nothing_behind() -> None:
    counts = _quick("soak.py")["counts"]
    for name, found in counts.items():
        assert found["least"] == found["most"], f"{name}: {found}"
    assert counts["temporary_files"]["most"] == counts["children"]["most"] == 0


@pytest.mark.slow
def test_every_stage_of_the_store_runs_at_every_size() -> None:
    sizes = _quick("bench_store.py")["sizes"]
    assert [len(size["stages"]) for size in sizes] == [7] * 4
    assert all(0 < size["stages"]["verify"]["share_of_decode"] < 1 for size in sizes)


@pytest.mark.slow
def test_sharing_is_measured_against_a_plain_copy() -> None:
    found = _quick("bench_share.py")
    assert found["second_push"]["files_moved"] == found["second_push"]["bytes_moved"] == 0
    assert 0 < found["parts"]["shards_of_one_record"] < 1
    assert found["s3"]["push_over_put"] > 0 and found["folder"]["pull_over_get"] > 0
