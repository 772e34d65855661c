"""The benchmark of training steps runs, and its ways compute one loss where they must."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_the_smoke_run_of_training_steps_agrees_and_saves_nothing() -> None:
    before = {path: path.stat().st_mtime_ns for path in (BENCHMARKS / "results").iterdir()}
    command = [sys.executable, str(BENCHMARKS / "bench_train.py"), "--quick"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (table,) = json.loads(output[output.index("{\n") :])["tables"].values()
    assert table["agreement"]["sft_fused and sft_full"] < 1e-5
    assert table["entries_of_a_row"]["k64"]["least"] == 64
    assert table["over_sft_full"].keys() == table["first_loss"].keys()
    assert {path: path.stat().st_mtime_ns for path in (BENCHMARKS / "results").iterdir()} == before
