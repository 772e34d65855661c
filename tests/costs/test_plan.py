"""``cachekd plan`` from end to end: figures against a real capture, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import Family, Ran, chat_rows, write_rows

from cachekd.costs.sample import spread

Run = Callable[..., Ran]


@pytest.fixture
def planned(cachekd: Run, family: Family, data: Path) -> Callable[..., dict[str, Any]]:
    def run(*further: object) -> dict[str, Any]:
        ran = cachekd("plan", "--teacher", family.teacher, "--data", data, "--json", *further)
        assert ran.code == 0, ran.err
        return ran.json

    return run


def named(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in report["candidates"] if row["name"] == name)


def test_bytes_are_those_of_a_real_capture(
    planned: Callable[..., dict[str, Any]],
    cachekd: Run,
    family: Family,
    tmp_path: Path,
) -> None:
    import cachekd as package

    many = write_rows(tmp_path / "many.jsonl", chat_rows(120))
    report = planned("--data", many)
    for name in ("float16, top 16", "float16, top 64", "log 1/8, top 32, p .99"):
        row, cache = named(report, name), tmp_path / name.replace("/", "").replace(" ", "")
        flags = ("--teacher", family.teacher, "--data", many, "--cache", cache)
        assert cachekd("precompute", *flags, *row["flags"].split()).code == 0
        opened = package.open_cache(str(cache))
        # The capture learns its prior of what it packs, and its one shard is small: 10 %.
        shard = sum(path.stat().st_size for path in (cache / "logits").glob("*.parquet"))
        per_token = shard / sum(len(opened[i].input_ids) for i in range(len(opened)))
        own = sum(row[f"{part}_bytes_per_token"] for part in ("targets", "input_ids", "container"))
        assert own == pytest.approx(per_token, rel=0.1), name
        counts = np.concatenate([np.diff(one.logits.offsets) for one in opened])
        assert row["entries"] == pytest.approx(counts.mean(), rel=0.1)
        tails = np.concatenate([np.exp(one.logits.tail) for one in opened])
        assert row["mass_1"] == pytest.approx(1 - tails.mean(), abs=0.02)


def test_the_report_adds_up(planned: Callable[..., dict[str, Any]]) -> None:
    report = planned("--samples", 10, "--price-per-hour", 3, "--price-per-gb-month", 0.5)
    assert report["documents"] == 30
    assert report["documents_learned_from"] == report["documents_measured"] == 5
    assert report["teacher_cost"] == pytest.approx(3 * report["teacher_hours"])
    for row in report["candidates"]:
        parts = ("targets", "input_ids", "container")
        each = sum(row[f"{part}_bytes_per_token"] for part in parts)
        shared = row["prior_bytes"] / report["tokens"]
        assert row["bytes_per_token"] == pytest.approx(each + shared)
        assert row["bytes_total"] >= row["bytes_per_token"] * report["tokens"] - 1
        assert row["storage_cost"] == pytest.approx(row["bytes_total"] / 1e9 * 0.5, rel=1e-3)
        assert 0 <= row["mass_4"] <= row["mass_2"] <= row["mass_1"] <= 1 + 1e-9
        assert ("kl_unigram" in row) is not row["sampled"]
    assert report["recommendation"]["name"] in [row["name"] for row in report["candidates"]]


def test_one_seed_gives_one_report(planned: Callable[..., dict[str, Any]]) -> None:
    first, again = (planned("--samples", 8, "--seed", 5)["candidates"] for _ in range(2))
    assert first == again
    assert planned("--samples", 8, "--seed", 6)["candidates"] != first


def test_the_users_own_setting_is_measured(planned: Callable[..., dict[str, Any]]) -> None:
    report = planned("--samples", 6, "--logits-top-k", 3, "--temperatures", 1)
    own = named(report, "as configured")
    assert own["flags"] == "--logits-top-k 3 --temperatures 1"
    assert own["entries"] <= 3
    assert "kl_flat_2" not in own, "no normaliser at T = 2 was asked for"


def test_only_response_rows_are_measured_if_only_they_are_captured(
    planned: Callable[..., dict[str, Any]],
) -> None:
    everything, responses = (
        planned("--samples", 20, "--rows", rows) for rows in ("all", "response")
    )
    assert responses["rows_measured"] < everything["rows_measured"]
    size = [named(report, "sqrt 1/12")["bytes_per_token"] for report in (everything, responses)]
    assert size[1] < size[0]


def test_the_page_and_the_text(cachekd: Run, family: Family, data: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "plan.html"
    flags = ("--teacher", family.teacher, "--data", data, "--samples", 8, "--max-kl", 0.5)
    ran = cachekd("plan", *flags, "--out", page)
    assert ran.code == 0, ran.err
    for part in ("sqrt 1/24", "Recommended:", "cachekd precompute --teacher", "0.5 nats"):
        assert part in ran.out
        assert part in page.read_text()
    assert "No price was given for teacher (--price-per-hour) and storage" in ran.out
    assert page.read_text().count("<svg") == 1


def test_a_dummy_teacher_can_be_planned_for(cachekd: Run, family: Family, data: Path) -> None:
    flags = ("--teacher", family.teacher, "--data", data, "--backend", "dummy", "--samples", 4)
    assert cachekd("plan", *flags, "--json").json["documents_measured"] == 2


def test_the_sample_is_spread_over_the_data() -> None:
    chosen = sorted(spread(1000, 100, 3))
    assert all(10 * place <= number < 10 * place + 10 for place, number in enumerate(chosen))
    assert sorted(spread(7, 100, 3)) == list(range(7))
    assert spread(1000, 100, 3) == spread(1000, 100, 3) != spread(1000, 100, 4)


@pytest.mark.parametrize(
    ("flags", "code", "part"),
    [
        (["--samples", 1], 2, "samples"),
        (["--max-kl", -1], 2, "max_kl"),
        (["--max-bytes-per-token", 0], 2, "max_bytes_per_token"),
        (["--price-per-hour", "nan"], 2, "price_per_hour"),
        (["--logits-top-p", 2], 2, "logits_top_p"),
        (["--data", "/nowhere.jsonl"], 1, "nowhere.jsonl"),
    ],
)
def test_what_is_refused(
    cachekd: Run, family: Family, data: Path, flags: list[object], code: int, part: str
) -> None:
    ran = cachekd("plan", "--teacher", family.teacher, "--data", data, *flags)
    assert ran.code == code
    assert part in ran.err and "Traceback" not in ran.err and ran.out == ""


def test_data_is_needed_and_more_than_one_document(
    cachekd: Run, family: Family, tmp_path: Path
) -> None:
    assert cachekd("plan", "--teacher", family.teacher).code == 2
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert cachekd("plan", "--teacher", family.teacher, "--data", empty).code == 1
    twice = write_rows(tmp_path / "one.jsonl", chat_rows(1) * 3)
    ran = cachekd("plan", "--teacher", family.teacher, "--data", twice)
    assert ran.code == 1 and "at least 2 different documents" in ran.err


def test_more_samples_than_data_measures_all_of_it(planned: Callable[..., dict[str, Any]]) -> None:
    report = planned("--samples", 5000)
    assert report["documents_learned_from"] + report["documents_measured"] == 30
    assert json.dumps(report)
