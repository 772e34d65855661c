"""What looks at a cache, or at help, loads no model library."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import Family, Ran

HEAVY = {
    "accelerate",
    "datasets",
    "matplotlib",
    "pandas",
    "peft",
    "rouge_score",
    "torch",
    "transformers",
}
PROBE = """
import json, sys
from importlib.metadata import entry_points
(point,) = entry_points(group="console_scripts", name="cachekd")
sys.argv = ["cachekd", *sys.argv[1:]]
try:
    point.load()()
except SystemExit:
    pass
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


def loaded(*args: object) -> set[str]:
    """Top-level modules that a command has loaded when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *map(str, args)], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["plan", "--help"],
        ["precompute", "--help"],
        ["train", "--help"],
        ["evaluate", "--help"],
        ["inspect", "--help"],
        ["verify", "--help"],
        ["report", "--help"],
        ["push", "--help"],
        ["pull", "--help"],
        ["import", "--help"],
        ["export", "--help"],
        ["gc", "--help"],
        ["ls", "--help"],
        ["benchmark", "--help"],
        ["serve-teacher", "--help"],
        ["demo", "--help"],
    ],
)
def test_help_is_light(args: list[str]) -> None:
    modules = loaded(*args)
    assert "click" in modules, "the probe must have run the command"
    assert not modules & HEAVY


EARLY = """
import json, sys
from cachekd_cli.main import main
codes = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["cachekd", *arguments]
    try:
        main()
    except SystemExit as end:
        codes.append(end.code)
print(json.dumps([codes, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_a_benchmark_that_cannot_be_is_refused_before_model_libraries_load(
    family: Family, data: Path, tmp_path: Path
) -> None:
    """Fields of `TrainingArguments` are among the flags: reading them takes these libraries."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"one": 1, "other": 2}\n')
    good = {"teacher": family.teacher, "student": family.student, "data": data}
    wrong: list[tuple[str, object]] = [
        ("out", tmp_path),
        ("price-per-hour", -1),
        ("data", rows),
        ("data", tmp_path / "none.jsonl"),
        ("teacher", tmp_path / "none"),
        ("student", tmp_path),
        ("logits-top-p", 2),
        ("objective", "gkd"),
        ("temperature", 7),
    ]
    flags = [{**good, name: value}.items() for name, value in wrong]
    calls = [
        ["benchmark", "--learning-rate", "0.1", *(str(p) for k, v in one for p in (f"--{k}", v))]
        for one in flags
    ]
    done = subprocess.run(
        [sys.executable, "-c", EARLY, json.dumps(calls)], capture_output=True, text=True, check=True
    )
    codes, modules = json.loads(done.stdout)
    assert codes == [2, 2, 1, 1, 1, 1, 2, 2, 2], done.stderr
    assert "numpy" in modules and not set(modules) & HEAVY
    assert "expected the columns of one layout" in done.stderr


def test_looking_at_a_cache_is_light(
    cachekd: Callable[..., Ran], family: Family, data: Path, tmp_path: Path
) -> None:
    cache, lists = tmp_path / "cache", tmp_path / "lists"
    flags = ("--teacher", family.teacher, "--data", data, "--cache", cache)
    assert cachekd("precompute", *flags).code == 0
    for args in (
        ["inspect", cache],
        ["inspect", cache, "--record", 0],
        ["verify", cache],
        ["seal", cache],
        ["merge", cache, "--out", tmp_path / "copy"],
        ["push", cache, tmp_path / "team" / "there"],
        ["pull", tmp_path / "team" / "there", tmp_path / "back"],
        ["ls", tmp_path / "team"],
        ["gc", cache],
        ["export", cache, "--format", "arrow", "--out", lists],
        ["report", cache, "--out", tmp_path / "page.html", "--tokenizer", family.teacher],
    ):
        modules = loaded(*args)
        assert "pyarrow" in modules and not modules & HEAVY, args
    said = ("--teacher", "t", "--tokenizer", family.teacher, "--cache", tmp_path / "again")
    modules = loaded("import", lists, "--format", "arrow", *said)
    assert modules & HEAVY <= {"pandas"}, "pyarrow loads it where a shard is written"


def test_opening_a_cache_from_python_needs_no_torch() -> None:
    code = "import sys, cachekd; cachekd.open_cache; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
