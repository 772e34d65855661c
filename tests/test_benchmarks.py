"""Benchmarks run, and find what they must on any machine: one loss, whole caches, no leaks."""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from comparing import forked
from tiny import Family, chat_rows, write_rows

from cachekd.costs.comparison import children
from cachekd.costs.comparison.parameters import count

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


@pytest.fixture
def break_even(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module, whose processes are forked: nothing is imported again."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("bench_break_even")
    monkeypatch.setattr(children, "launch", forked)
    monkeypatch.setattr(module, "get_context", lambda _: multiprocessing.get_context("fork"))
    return module


@pytest.mark.slow
def test_break_even_is_predicted_and_measured(
    break_even: Any, family: Family, tmp_path: Path
) -> None:
    flags = {"max_samples": 40, "samples": 24, "steps": 6, "epochs": 2.0, "threads": 1}
    given = {"student": family.student, "data": write_rows(tmp_path / "d.jsonl", chat_rows(40))}
    config = break_even.settings(argparse.Namespace(**flags, **given), family.teacher)
    found = break_even.compare(config)
    parts = ("capture", "cached_training")
    for totals in (found["predicted_seconds"], found["measured_seconds"]):
        for clock in ("wall", "cpu"):
            whole = sum(totals[part][clock] for part in parts)
            assert totals["cached_total"][clock] == pytest.approx(whole, rel=1e-3)
            assert all(one[clock] > 0 for one in totals.values())
    for name, errors in found["error"].items():
        ratio = found["predicted_seconds"][name]["cpu"] / found["measured_seconds"][name]["cpu"]
        assert errors["cpu"] == pytest.approx(ratio - 1, abs=2e-3)
    assert found["report"]["data"]["samples"] == 40 and str(tmp_path) not in json.dumps(found)


def test_a_larger_teacher_has_about_so_many_times_the_parameters(
    break_even: Any, family: Family, tmp_path: Path
) -> None:
    larger = break_even.larger(family.teacher, tmp_path / "larger", 8)
    sizes = [count(one, trust_remote_code=False).active for one in (family.teacher, larger)]
    assert 4 < sizes[1] / sizes[0] < 12


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
def test_the_short_run_of_compaction_asks_for_each_shard_a_few_times() -> None:
    found = _quick("bench_gc.py")
    (memory,) = found["memory"]
    assert memory["shards_after"] < memory["shards_before"] and memory["grew_by_mb"] > 0
    few, more = found["requests"]["4"], found["requests"]["8"]
    assert (more["seal"] - few["seal"]) / 4 == 2, "its record and its samples"
    assert (more["compact_and_collect"] - few["compact_and_collect"]) / 4 <= 7


@pytest.mark.slow
def test_sharing_is_measured_against_a_plain_copy() -> None:
    found = _quick("bench_share.py")
    assert found["second_push"]["files_moved"] == found["second_push"]["bytes_moved"] == 0
    assert 0 < found["parts"]["shards_of_one_record"] < 1
    assert found["s3"]["push_over_put"] > 0 and found["folder"]["pull_over_get"] > 0
    moved = {f"{act}_{place}" for act in ("push", "pull") for place in ("folder", "s3")}
    assert found["memory"]["growth_mb"].keys() == moved


@pytest.mark.slow
def test_exchange_gives_back_what_formats_can_hold() -> None:
    formats = _quick("bench_exchange.py")["formats"]
    exact = ["arrow", "axolotl", "distillkit", "openai", "megatron, float32"]
    assert all(formats[name]["error"]["logprob"] == 0 for name in exact)
    assert 0 < formats["megatron, float16"]["error"]["logprob"] < 0.01
    assert 0 < formats["distillkit, bfloat16"]["error"]["logprob"] < 0.1
    assert formats["axolotl, renormalised"]["error"].keys() == {"logprob"}


@pytest.mark.slow
def test_training_from_s3_is_measured_against_a_folder() -> None:
    found = _quick("bench_remote.py")
    for series in (*found["loader"].values(), found["training"]):
        assert series["held_bytes"] > 0
        assert all(series[f"{way}_over_local"]["cpu"]["median"] > 0 for way in ("cold", "warm"))
    for name in ("0 workers", "2 workers"):
        assert found["bound"][name]["peak_over_bound"] <= 1 < found["bound"]["cache_over_bound"]
    few, many = found["some_shards"], found["many_shards"]
    assert few["epoch"]["repeats"] == 1 and few["requests"] <= many["requests"] < 100
