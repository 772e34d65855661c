"""``cachekd report`` refuses what it cannot show, before any work, and leaves no page behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import capture
from sick import Sickness
from tiny import Family, Ran, chat_rows, save_tokenizer, write_rows

from cachekd.overview.rows import draw
from cachekd.store.reader import open_cache

Run = Callable[..., Ran]
RECORD: dict[str, Any] = {
    "status": "done",
    "config": {"objective": "kd", "training": {}},
    "objective": {"name": "kd", "options": {}},
    "caches": [],
    "training_arguments": {},
    "versions": {},
    "counts": {},
    "history": [{"step": 1, "loss": 2.0}],
}


@pytest.fixture
def report(cachekd: Run, tmp_path: Path) -> Callable[..., str]:
    """Runs the command, expects it to fail, and gives its message; nothing may be written."""

    def run(*args: object, code: int = 2) -> str:
        before = set(tmp_path.rglob("*"))
        ran = cachekd("report", *args, "--out", tmp_path / "page.html")
        assert ran.code == code, ran.err
        assert ran.out == "" and "Traceback" not in ran.err
        assert set(tmp_path.rglob("*")) == before
        return ran.err

    return run


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., Path]:
    """A folder with this text, or this record, as its run.json."""

    def write(content: Any = RECORD, name: str = "run") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "run.json").write_text(text)
        return folder

    return write


def test_neither_cache_nor_run(report: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for name, found in (("folder", "without either"), ("file", "a file"), ("none", "nothing")):
        message = report(tmp_path / name)
        assert name in message and "cache.json" in message and "run.json" in message
        assert found in message


def test_caches_and_runs_are_not_mixed(
    report: Callable[..., str], cache: Path, run_of: Callable[..., Path]
) -> None:
    message = report(cache, run_of())
    assert "(a cache)" in message and "(a run)" in message
    assert "one cache" in report(cache, cache)


def test_a_run_that_is_named_twice(report: Callable[..., str], run_of: Callable[..., Path]) -> None:
    folder = run_of()
    assert "named twice" in report(folder, folder / "run.json")


def test_an_unsealed_cache(report: Callable[..., str], cache: Path) -> None:
    for path in cache.glob("manifest*.json"):
        path.unlink()
    assert "not sealed" in report(cache, code=1)


def test_a_damaged_shard(report: Callable[..., str], cache: Path) -> None:
    shard = next((cache / "logits").glob("*.parquet"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert shard.name in report(cache, code=4)


def test_a_cache_without_its_identity(report: Callable[..., str], cache: Path) -> None:
    (cache / "cache.json").unlink()
    assert "restore it from a copy" in report(cache, code=4)


def test_a_lost_file_that_only_its_size_is_asked_of(
    report: Callable[..., str], cache: Path
) -> None:
    shutil.rmtree(cache / "priors", ignore_errors=True)
    assert "is missing" in report(cache, code=4)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "found list"),
        ({}, "with status (str)"),
        (RECORD | {"caches": [1]}, "facts of each cache"),
        (RECORD | {"steps": "many"}, "steps (int or nothing)"),
        (RECORD | {"final_eval": []}, "final_eval (dict or nothing)"),
        (RECORD | {"rollouts": {"scores": 1}}, "rollouts cost"),
        (RECORD | {"history": {}}, "expected history to be a list"),
        (RECORD | {"history": [{"loss": 1.0}]}, "log row 0 has no step"),
        (RECORD | {"history": [{"step": True}]}, "log row 0 has no step"),
    ],
)
def test_a_record_that_is_none(
    report: Callable[..., str], run_of: Callable[..., Path], content: Any, said: str
) -> None:
    folder = run_of(content)
    message = report(folder, code=1)
    assert said in message and str(folder / "run.json") in message


def test_a_record_with_strange_values_is_shown(
    cachekd: Run, run_of: Callable[..., Path], tmp_path: Path
) -> None:
    name = "</script><script>alert(1)"
    strange = RECORD | {
        "status": name,
        "history": [{"step": 10**400, "loss": -(10**400), name: 1.0}, {"step": 2, "loss": "x"}],
        "final_eval": {"eval_kl": "many", f"eval_{name}": 1.0, "eval_ce": True},
        "throughput": {"tokens_per_second": None, "peak_memory_bytes": "x"},
        "config": {"objective": None, "training": {}, name: {name: [name]}},
    }
    out = tmp_path / "page.html"
    ran = cachekd("report", run_of(strange), "--out", out)
    assert ran.code == 0, ran.err
    page = out.read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;/script&gt;&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("flag", ["--out", "--plots-dir"])
def test_a_place_that_cannot_be_written_is_found_first(
    cachekd: Run, cache: Path, tmp_path: Path, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cachekd.overview.cache.cache_report", lambda *args: pytest.fail("the cache was read")
    )
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "file" / "page", "/proc/page"):
        ran = cachekd("report", cache, flag, place)
        assert ran.code == 2 and "cannot write to" in ran.err, ran.err
    assert "is a folder" in cachekd("report", cache, "--out", tmp_path).err
    assert not list(tmp_path.glob("*.html"))


def test_settings_of_the_other_kind_are_refused(
    report: Callable[..., str], cache: Path, run_of: Callable[..., Path], family: Family
) -> None:
    folder = run_of()
    assert "for the report of a cache" in report(folder, "--teacher", family.teacher)
    assert "for the report of a cache" in report(folder, "--tokenizer", family.teacher)
    assert "name the teacher: --teacher" in report(cache, "--dtype", "float32")
    assert "expected at least 1; found 0" in report(cache, "--sample", 0)
    assert "expected 0 or more; found -1" in report(cache, "--seed", -1)


def test_an_evaluation_that_is_none_or_of_other_runs(
    report: Callable[..., str], cache: Path, run_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder, file = run_of(), tmp_path / "evaluation.json"
    file.write_text('{"models": [{"path": "/elsewhere", "metrics": {}}]}')
    assert "of none of these runs" in report(folder, "--evaluation", file, code=1)
    assert "for the report of runs" in report(cache, "--evaluation", file)
    for text in ("[]", "{}", '{"models": [1]}', '{"models": [{"path": 1, "metrics": {}}]}'):
        file.write_text(text)
        assert "cachekd evaluate --json" in report(folder, "--evaluation", file, code=1)
    own = {"models": [{"path": str(folder), "metrics": {}}]}
    file.write_text(json.dumps(own))
    assert "another file too" in report(folder, "--evaluation", file, "--evaluation", file, code=1)
    assert "cannot be read" in report(folder, "--evaluation", tmp_path / "none", code=1)


def test_another_tokenizer_or_teacher_is_refused(
    report: Callable[..., str], cache: Path, family: Family, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    save_tokenizer(other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = report(cache, "--tokenizer", other, code=5)
    assert str(other) in message and cache.name in message and "tokenizer" in message
    message = report(cache, "--teacher", family.teacher, code=5)
    assert "weights" in message, "the cache is that of a dummy"
    assert "no such model" in report(cache, "--tokenizer", tmp_path / "none", code=1)


def test_a_sample_without_any_target_is_shown_with_gaps(
    cachekd: Run, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, cache = write_rows(tmp_path / "data.jsonl", chat_rows(4)), tmp_path / "cache"
    with monkeypatch.context() as patch:
        Sickness(lambda seen, row_V: seen >= 3).install(patch)
        capture(family, data, cache, backend="dummy", rows="response", on_bad_targets="skip")
    opened = open_cache(str(cache))
    bare = [i for i, record in enumerate(opened) if not len(record.logits.ids)]
    seed = next(seed for seed in range(99) if draw(opened, 1, seed).numbers[0] in bare)
    out = tmp_path / "page.html"
    flags = ("--teacher", family.teacher, "--backend", "dummy", "--sample", 1, "--seed", seed)
    ran = cachekd("report", cache, "--out", out, *flags, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["mass"] is None and ran.json["kl"] is None
    assert "no record of the sample has targets" in ran.json["kl_gap"]
    page = out.read_text(encoding="utf-8")
    assert "No row of the sample has targets" in page and "no data" in page
    assert "Not shown: no record of the sample has enough rows" in page
