"""``cachekd benchmark`` from end to end on the tiny family, in forked processes."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from comparing import forked
from tiny import (
    Family,
    Ran,
    chat_rows,
    save_mixture,
    save_model,
    save_tokenizer,
    write_rows,
)

import cachekd
from cachekd.config import BenchmarkConfig
from cachekd.costs.comparison import children, page, process
from cachekd.costs.comparison.jobs import Job, Scoring

SMALL = {"use_cpu": True, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module")
def launched() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(children, "launch", forked)
        yield


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module")
def report(family: Family, launched: None, places: Path) -> dict[str, Any]:
    """One run, with prices, a page and pictures; temporary files in a folder of its own."""
    data = write_rows(places / "data.jsonl", [*chat_rows(20), *chat_rows(2)])
    (places / "tmp").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(places / "tmp"))
        return cachekd.benchmark(
            BenchmarkConfig(
                teacher=str(family.teacher),
                student=str(family.student),
                data=(str(data),),
                device="cpu",
                threads=1,
                samples=12,
                steps=6,
                discard=1,
                training=SMALL,
                price_per_hour=2.0,
                price_per_gb_month=0.1,
                out=str(places / "b.html"),
                plots_dir=str(places / "png"),
            )
        )


def test_a_capture_tells_its_batches_apart(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a counter that goes up by a joule a reading."""
    readings = count()
    counting = SimpleNamespace(joules=lambda: float(next(readings)), why="")
    monkeypatch.setattr(process, "counter", lambda: counting)
    write_rows(tmp_path / "sample.jsonl", chat_rows(12))
    settings = BenchmarkConfig(
        teacher=str(family.teacher),
        student=str(family.student),
        data=(str(tmp_path / "sample.jsonl"),),
        device="cpu",
        batch_tokens=128,
    )
    told: list[Scoring] = []
    found = process._capture(Job(side="capture", config=settings, folder=tmp_path), told.append)
    assert len(found.batches) > 4
    assert sum(batch.tokens for batch in found.batches) == found.tokens
    assert all(batch.seconds > 0 for batch in found.batches)
    assert sum(batch.seconds for batch in found.batches) < found.score_seconds
    assert sum(batch.cpu for batch in found.batches) <= found.cpu_seconds
    assert len(told) == len(found.batches)
    assert told[-1] == Scoring(tokens=found.tokens, of=found.tokens)
    assert (found.first_joules, found.joules) == (1.0, 2.0)


def test_counts_of_the_whole_and_of_the_sample(report: dict[str, Any]) -> None:
    data = report["data"]
    assert (data["samples"], data["documents"], data["drawn"]) == (22, 20, 12)
    assert data["tokens"] < data["sample_tokens"] and data["drawn_tokens"] < data["tokens"]
    assert data["steps_per_epoch"] == 6


def test_everything_is_measured_but_energy(report: dict[str, Any]) -> None:
    kinds = {name: one["kind"] for name, one in page.quantities(report)}
    gaps = {name for name, kind in kinds.items() if kind == "gap"}
    gaps.remove("capture.relative_error")  # the sample is one batch
    assert gaps and all("joules" in name or name.startswith("energy") for name in gaps)
    for name, one in page.quantities(report):
        assert one["value"] is None or one["value"] >= 0, name
    for side in ("cached", "live", "sft"):
        own = {name: one["value"] for name, one in report["steps"][side].items()}
        assert own["step_seconds_low"] <= own["step_seconds"] <= own["step_seconds_high"]
        assert own["peak_memory_bytes"] > 10**8 and 0 <= own["data_wait_share"] < 1
    live = report["steps"]["live"]
    assert 0 < live["teacher_step_seconds"]["value"] < live["step_seconds"]["value"]
    assert report["alternated"] is True and report["device"] == "cpu"


def test_the_report_adds_up(report: dict[str, Any]) -> None:
    capture, data = report["capture"], report["data"]
    seconds = capture["prepare_seconds"]["value"] + capture["load_seconds"]["value"]
    seconds += capture["import_seconds"]["value"] + capture["exit_seconds"]["value"]
    seconds += data["tokens"] / capture["tokens_per_second"]["value"]
    assert capture["seconds"]["value"] == pytest.approx(seconds)
    cached, live = report["steps"]["cached"], report["steps"]["live"]
    total = seconds + cached["fixed_seconds"]["value"] + 3 * cached["epoch_seconds"]["value"]
    assert report["time"]["cached_total"]["value"] == pytest.approx(total)
    total = capture["prepare_seconds"]["value"] + live["fixed_seconds"]["value"]
    total += 3 * live["epoch_seconds"]["value"]
    assert report["time"]["live_total"]["value"] == pytest.approx(total)


def test_the_page_and_the_pictures(report: dict[str, Any], places: Path) -> None:
    text = (places / "b.html").read_text()
    assert page.headline(report) in text and "there is no GPU that counts its energy" in text
    pictures = sorted((places / "png").iterdir())
    assert text.count("<svg") == len(pictures) == 5
    assert all(one.read_bytes()[:4] == b"\x89PNG" for one in pictures)


def test_nothing_temporary_is_left(report: dict[str, Any], places: Path) -> None:
    assert report and not list((places / "tmp").iterdir())
    assert sorted(os.listdir(places)) == ["b.html", "data.jsonl", "png", "tmp"]


@pytest.mark.slow
def test_a_mixture_that_is_scored_once_for_a_large_student_is_not_worth_a_cache(
    family: Family, launched: None, tmp_path: Path
) -> None:
    """The capture is a pass that one epoch of live training does anyway, and a cheap one."""
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    for folder in (teacher, student):
        save_tokenizer(folder)
    save_mixture(teacher, family.vocab, kind="mixtral")
    save_model(student, family.vocab, width=64, layers=4, seed=1)
    report = cachekd.benchmark(
        BenchmarkConfig(
            teacher=str(teacher),
            student=str(student),
            data=(str(write_rows(tmp_path / "data.jsonl", chat_rows(40))),),
            device="cpu",
            threads=1,
            epochs=1.0,
            samples=40,
            steps=8,
            discard=2,
            training=SMALL,
        )
    )
    models, time = report["models"], report["time"]
    assert models["teacher"]["experts_per_token"] == 2
    assert (
        models["active_ratio"]["value"]
        < 1
        < models["teacher"]["parameters"] / (models["teacher"]["active_parameters"])
    )
    assert time["cached_total"]["value"] > time["live_total"]["value"]
    assert report["verdict"]["advice"] == "do not cache"
    reasons = " ".join(report["verdict"]["reasons"])
    assert "one epoch of one student" in reasons
    assert "a mixture of experts with few active parameters" in reasons


def test_the_command_prints_one_object_or_words(
    report: dict[str, Any],
    family: Family,
    places: Path,
    cachekd: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it prints, of a report that is there already; and the flags that reach the settings."""
    asked: list[BenchmarkConfig] = []

    def benchmark(config: BenchmarkConfig, *, progress: Any) -> dict[str, Any]:
        asked.append(config)
        for what, of in (("capture", 900), ("steps", 5)):
            for done in (0, 1, of):
                progress(what, done, of)
        return report

    monkeypatch.setattr(sys.modules["cachekd.costs.comparison"], "benchmark", benchmark)
    flags: list[object] = ["--teacher", family.teacher, "--student", family.student]
    flags += ["--data", places / "data.jsonl", "--objective", "jsd", "--beta", 0.2]
    flags += ["--per-device-train-batch-size", 4, "--bf16", "true"]
    ran = cachekd("benchmark", *flags, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["verdict"] == report["verdict"]
    assert "capture: loading, then 900 tokens" in ran.err and "900 of 900 tokens" in ran.err
    assert "5 of 5 rounds" in ran.err
    assert asked[0].objective_options["beta"] == 0.2
    assert asked[0].training == {"per_device_train_batch_size": 4, "bf16": True}
    told = cachekd("benchmark", *flags)
    for part in (page.headline(report), "A training step", "break-even", "no GPU"):
        assert part in told.out
