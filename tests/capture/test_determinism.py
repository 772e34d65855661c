"""The same command gives the same bytes, wherever, whenever and by whomever it is run."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from forking import Forked, command
from tiny import Family, chat_rows, write_rows

from cachekd.store.layout import HINT

CONTENT = ("logits", "attention", "samples", "plans", "priors", "index", "generated")
TESTS = Path(__file__).parents[1]


def copied(folder: Path, target: Path) -> Path:
    """The same files, made in another order, at another time, in other inodes."""
    target.mkdir()
    names = sorted(path.name for path in folder.iterdir())
    random.Random(0).shuffle(names)
    for name in names:
        (target / name).write_bytes((folder / name).read_bytes())
        os.utime(target / name, (10**9, 10**9))
    return target


@pytest.fixture
def place(family: Family, tmp_path: Path) -> Path:
    """A folder with a teacher and two data files."""
    folder = tmp_path / "here"
    folder.mkdir()
    shutil.copytree(family.teacher, folder / "teacher")
    write_rows(folder / "first.jsonl", [{**row, "domain": "ä"} for row in chat_rows(20)])
    write_rows(folder / "second.jsonl", [{**row, "domain": "b"} for row in chat_rows(20, 50)])
    return folder


def arguments(folder: Path, cache: object, *further: object) -> list[str]:
    parts = ["precompute", "--json", "--teacher", folder / "teacher", "--cache", cache]
    parts += ["--data", folder / "first.jsonl", "--data", folder / "second.jsonl", "--threads", 1]
    parts += ["--unit-tokens", 200, "--batch-tokens", 100, "--domain-column", "domain"]
    return [str(part) for part in [*parts, "--on-long", "skip", *further]]


def content(cache: Path) -> dict[str, bytes]:
    """All that does not tell of when and where it was made."""
    files = {
        f"{folder}/{path.name}": path.read_bytes()
        for folder in CONTENT
        for path in sorted((cache / folder).glob("*"))
    }
    assert len(files) > 5
    return files


def facts(cache: Path) -> dict[str, Any]:
    """The seal, without digests of what names hosts and times, and what each unit was made with."""
    hint = json.loads((cache / HINT).read_text())
    seal = json.loads((cache / hint["newest"]).read_text())
    units = [json.loads(path.read_text()) for path in sorted((cache / "units").iterdir())]
    told = {key: value for key, value in seal.items() if key not in ("files", "checksum")}
    return {"seal": told, "numerics": [unit["numerics"] for unit in units]}


def assert_same(left: Path, right: Path) -> None:
    assert content(left) == content(right)
    assert facts(left) == facts(right)


def elsewhere(place: Path, root: Path, number: int) -> tuple[Path, Mapping[str, str]]:
    """A copy of the data under another folder, and another user's environment."""
    folder = copied(place / "teacher", root / "teacher").parent
    for name in ("second.jsonl", "first.jsonl"):
        shutil.copyfile(place / name, folder / name)
    (root / "home").mkdir()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))},
        "PYTHONHASHSEED": str(number),
        "TZ": ("Pacific/Kiritimati", "America/St_Johns")[number % 2],
        "LC_ALL": ("C", "C.UTF-8")[number % 2],
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "HOME": str(root / "home"),
        "XDG_CACHE_HOME": str(root / "home"),
        "USER": f"user{number}",
        "LOGNAME": f"user{number}",
        "OMP_NUM_THREADS": str(1 + number % 2),
        "PYTHONPATH": str(TESTS),
    }
    return folder, environment


def run_elsewhere(place: Path, root: Path, number: int, *further: object) -> Path:
    """The same command in a new process: everything around it is another."""
    root.mkdir()
    folder, environment = elsewhere(place, root, number)
    # Writers start for long runs only, which these are not.
    code = "from cachekd.capture import worker; worker._WORTH_A_PROCESS = 0\n"
    code += "from cachekd_cli.main import main; main()"
    relative = arguments(Path(), "cache", *further, "--writers", 1 + number % 2)
    done = subprocess.run(
        [sys.executable, "-c", code, *relative],
        cwd=folder,
        env=environment,
        umask=(0o077, 0o002)[number % 2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "cache"


def run_here(place: Path, log: Path, *further: object) -> Path:
    ended = Forked(command(*arguments(place, place / "cache", *further)), log).end()
    assert ended.code == 0, ended
    return place / "cache"


def test_a_command_run_elsewhere_gives_the_same_bytes(place: Path, tmp_path: Path) -> None:
    dummy = ("--backend", "dummy", "--writers", 0)
    here = run_here(place, tmp_path / "log", *dummy)
    there = run_elsewhere(place, tmp_path / "there", 0, *dummy[:2])
    assert_same(here, there)
    (kept,) = {path.stat().st_mode & 0o777 for path in (there / "logits").iterdir()}
    assert kept == 0o600, "the umask was another"


@pytest.mark.reliability
@pytest.mark.parametrize(
    "further",
    [
        ("--attention", "maps"),
        ("--generate", "sample", "--max-new-tokens", 6, "--logits-selection", "top_k+sampled"),
    ],
)
def test_a_model_run_three_times_gives_the_same_bytes(
    place: Path, tmp_path: Path, further: tuple[object, ...]
) -> None:
    here = run_here(place, tmp_path / "log", *further)
    for number in (1, 2):
        assert_same(here, run_elsewhere(place, tmp_path / str(number), number, *further))
    made_with = facts(here)["numerics"]
    assert {unit["threads"] for unit in made_with} == {1}
    assert {unit["torch"] for unit in made_with} == {version("torch")}
    assert {unit["transformers"] for unit in made_with} == {version("transformers")}
