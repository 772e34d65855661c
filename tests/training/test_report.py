"""The report of a run, and what it measures."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import cachekd
from cachekd.config import TrainConfig
from cachekd.errors import Incomplete
from cachekd.training.figures import figures_of
from cachekd.training.meter import Meter

Make = Callable[..., TrainConfig]


def test_report_holds_curves_counts_and_settings(config: Make, made: Any, tmp_path: Path) -> None:
    report = cachekd.train(
        config(
            cache=(f"main={made.cache}",),
            eval_cache=str(made.heldout_cache),
            eval_data=(str(made.heldout_data),),
            training={"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no"},
        )
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert re.search(r"https?://|<script|<link|@import|url\(", page) is None
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert captions == ["loss", "kl", "ce", "tail mass", "learning rate", "grad norm"]
    legends = re.findall(r'<ul class="legend">(.*?)</ul>', page)
    assert [legend.count("<li") for legend in legends] == [3, 2, 3, 2, 1, 1]
    assert f"<td>{report['counts']['trained_rows']:,}</td>" in page
    assert report["caches"][0]["capture_id"] in page
    assert "share of time waiting for data" in page and "peak memory" in page
    assert "<td>learning_rate</td><td>0.01</td>" in page
    assert f"{report['final_eval']['eval_kl']:.4f}" in page


def test_an_interrupted_run_has_its_report(
    config: Make, tmp_path: Path, interrupt: Callable[[int], None]
) -> None:
    interrupt(3)
    with pytest.raises(Incomplete):
        cachekd.train(config())
    assert "Status: interrupted" in (tmp_path / "out" / "report.html").read_text()


def test_throughput_counts_every_token_once(config: Make) -> None:
    epoch = {"max_steps": -1, "num_train_epochs": 2, "save_strategy": "no"}
    report = cachekd.train(config(training=epoch))
    used = report["throughput"]
    assert used["trained_tokens"] == 2 * report["counts"]["tokens"]
    assert 0 <= used["data_wait_share"] < 1
    assert used["steps_per_second"] * used["training_seconds"] == pytest.approx(report["steps"])
    assert used["peak_memory_bytes"] > 50e6 and used["peak_cuda_memory_bytes"] is None
    packed = cachekd.train(config("packed", packing=True, training=epoch))
    assert packed["throughput"]["trained_tokens"] >= 2 * packed["counts"]["tokens"]


def test_waiting_is_what_the_iterator_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only the test moves: 3 s a batch, 1 s between, an evaluation of 5 s."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def batches() -> Iterator[Any]:
        for _ in range(4):
            now[0] += 3
            yield {"input_ids": torch.zeros(2, 5), "attention_mask": torch.ones(2, 5)}

    meter = Meter()
    meter.begin()
    for _ in meter.timed(batches()):
        now[0] += 1
        meter.steps += 1
    with meter.paused(), meter.paused():
        now[0] += 5
    meter.end()
    used = meter.figures(Accelerator(cpu=True))
    assert (used["training_seconds"], used["data_wait_share"]) == (16, 0.75)
    assert (used["trained_tokens"], used["tokens_per_second"]) == (40, 2.5)


def test_figures_are_those_that_were_logged_in_the_order_of_the_loss() -> None:
    history = [
        {"loss": 1.0, "zeta": 0.1, "ce": 2.0, "learning_rate": 0.1, "step": 1, "epoch": 0.1},
        {"eval_alpha": 1.0, "eval_runtime": 3.0, "eval_text_ce": 1.0, "step": 1},
        {"train_runtime": 3.0, "total_flos": 1.0, "step": 2},
    ]
    assert figures_of(history) == ["loss", "ce", "alpha", "zeta", "learning_rate"]
