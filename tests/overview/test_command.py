"""``cachekd report`` on the command line: what it prints and writes, where settings come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import Family, Ran


def test_the_command_writes_the_page_and_says_it(
    cachekd: Callable[..., Ran], captured: Path, family: Family, tmp_path: Path
) -> None:
    out, figures = tmp_path / "cache.html", tmp_path / "figures"
    flags = ("--tokenizer", family.teacher, "--sample", 9, "--plots-dir", figures)
    ran = cachekd("report", captured, "--out", out, *flags)
    assert ran.code == 0, ran.err
    assert "reading: 9 of 9 records" in ran.err
    assert "9 of 28 records" in ran.out and "name the teacher with --teacher" in ran.out
    assert f"Page: {out}" in ran.out and f"{len(list(figures.iterdir()))} PNG files" in ran.out
    ran = cachekd("report", captured, "--out", out, "--sample", 9, "--json")
    assert ran.json["kind"] == "cache" and ran.json["text"] is False and ran.json["plots"] == []
    page = out.read_text(encoding="utf-8")
    assert "Tokens are shown by their ids" in page and "not measured" in page


def test_a_cache_by_its_url_is_the_same_cache(
    cachekd: Callable[..., Ran], captured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    by_path = cachekd("report", captured, "--json").json
    by_url = cachekd("report", captured.as_uri(), "--json").json
    assert by_path["page"] is None and not list(tmp_path.iterdir()), "no page was asked for"
    assert cachekd("report", captured).code == 0 and (tmp_path / "cache.html").is_file()
    for name in ("bytes", "entropy", "made", "totals"):
        assert by_url[name] == by_path[name]


def test_settings_come_from_yaml_too(
    cachekd: Callable[..., Ran], captured: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "report.yaml"
    settings.write_text(f"sample: 3\nseed: 4\nout: {tmp_path / 'a.html'}\n")
    ran = cachekd("report", captured, "--config", settings, "--seed", 5, "--json")
    assert (ran.json["sample"]["records"], ran.json["sample"]["seed"]) == (3, 5)
    assert ran.json["page"] == str(tmp_path / "a.html")
    settings.write_text("smaple: 3\n")
    assert "Did you mean 'sample'" in cachekd("report", captured, "--config", settings).err


def test_a_teacher_of_the_environment_is_for_caches_alone(
    cachekd: Callable[..., Ran],
    captured: Path,
    runs: tuple[Path, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CACHEKD_TEACHER", str(tmp_path / "none"))
    ran = cachekd("report", runs[0], "--out", tmp_path / "run.html")
    assert ran.code == 0, ran.err
    ran = cachekd("report", captured, "--out", tmp_path / "cache.html")
    assert ran.code == 1 and "no such model" in ran.err


def test_one_run_is_a_page_of_its_own(
    cachekd: Callable[..., Ran], runs: tuple[Path, ...], tmp_path: Path
) -> None:
    ran = cachekd("report", runs[0] / "run.json", "--out", tmp_path / "run.html", "--json")
    assert ran.code == 0 and ran.json["kind"] == "runs" and ran.json["differences"] == {}
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert "The run one" in page and "Settings that differ" not in page
