"""Reproductions: the table and the verdicts follow from runs, runs continue, settings are known."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from tiny import Family, chat_rows, write_rows

from cachekd.config import EvaluateConfig, PrecomputeConfig, TrainConfig
from cachekd.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "benchmarks" / "reproduce"
SCRIPTS = ("kd_attention", "dae", "multi_granularity", "minillm", "cached_against_live")
Load = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Imports a module of the folder, as its scripts do; they are gone after the test."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        module = sys.modules[name]
        if str(getattr(module, "__file__", None)).startswith(str(FOLDER.parent)):
            del sys.modules[name]


def runs_of(orderings: ModuleType, **values: list[float | None]) -> list[Any]:
    """A run for each seed of each way, with one figure."""
    return [
        orderings.Run(way=way, seed=seed, figures={"kl": value})
        for way, own in values.items()
        for seed, value in enumerate(own)
    ]


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        ([1.0, 1.1, 1.2], [2.0, 2.1, 2.3], "holds"),  # less KL is better
        ([2.0, 2.1, 2.3], [1.0, 1.1, 1.2], "does not hold"),
        ([1.0, 2.0, 3.0], [1.1, 1.9, 3.05], "within noise"),
        ([1.0, 5.0, 1.0], [2.0, 4.9, 1.2], "within noise"),  # m .37, s .32
        ([1.0], [2.0], "not judged: fewer than two seeds"),
        ([1.0, None], [2.0, 2.0], "not judged: fewer than two seeds"),
    ],
)
def test_better_is_two_standard_errors_of_the_paired_difference(
    load: Load, one: list[float | None], other: list[float | None], verdict: str
) -> None:
    orderings = load("orderings")
    ordering = orderings.Ordering(better="a", worse="b", metric="kl", source="x")
    assert orderings.judged(ordering, runs_of(orderings, a=one, b=other))["verdict"] == verdict


def test_figures_of_a_verdict_by_hand(load: Load) -> None:
    orderings = load("orderings")
    ordering = orderings.Ordering(better="a", worse="b", metric="kl", source="Table 1")
    runs = runs_of(orderings, a=[1.0, 2.0, 4.0], b=[2.0, 4.0, 7.0])
    found = orderings.judged(ordering, runs)
    assert found["pairs"] == 3 and found["mean"] == pytest.approx(2.0)  # 1, 2, 3
    assert found["standard_error"] == pytest.approx(3**-0.5)
    assert found["statement"] == "a is better than b in kl"


@pytest.mark.parametrize(
    ("one", "verdict"),
    [
        ([1.01, 1.01, 1.01], "holds"),
        ([1.2, 1.2, 1.2], "does not hold"),
        ([1.0, 1.3, 1.0], "within noise"),
        ([0.5, 0.5, 0.5], "holds"),
    ],
)
def test_not_worse_has_a_tolerance(load: Load, one: list[float | None], verdict: str) -> None:
    orderings = load("orderings")
    ordering = orderings.Ordering(
        better="a", worse="b", metric="kl", source="x", rule="not worse", tolerance=0.05
    )
    runs = runs_of(orderings, a=one, b=[1.0, 1.0, 1.0])
    assert orderings.judged(ordering, runs)["verdict"] == verdict


@pytest.mark.parametrize(
    ("one", "verdict"),
    [
        ([1.05, 1.15, 1.25], "holds"),  # .05 off, deviation .1
        ([1.3, 1.4, 1.5], "does not hold"),
        ([1.0, 1.5, 1.3], "within noise"),  # m .17, s .12
    ],
)
def test_same_is_within_the_deviation_of_the_other(
    load: Load, one: list[float | None], verdict: str
) -> None:
    orderings = load("orderings")
    ordering = orderings.Ordering(better="a", worse="b", metric="kl", source="x", rule="same")
    runs = runs_of(orderings, a=one, b=[1.0, 1.1, 1.2])
    assert orderings.judged(ordering, runs)["verdict"] == verdict


def test_a_metric_without_a_direction_is_refused(load: Load) -> None:
    orderings = load("orderings")
    ordering = orderings.Ordering(better="a", worse="b", metric="length", source="x")
    with pytest.raises(KeyError, match="length"):
        orderings.judged(ordering, [])


def test_the_table_has_means_deviations_and_gaps(load: Load) -> None:
    orderings = load("orderings")
    rows = orderings.summary(runs_of(orderings, a=[1.0, 3.0], b=[None, 2.0], c=[2.0]))
    assert [row["way"] for row in rows] == ["a", "b", "c"]
    figure = rows[0]["figures"]["kl"]
    assert figure["mean"] == 2.0 and figure["deviation"] == pytest.approx(2**0.5)
    lines = orderings.markdown(rows, {"kl": "KL", "loss": "loss"}).splitlines()
    assert lines[0] == "|  | KL | loss |"
    assert lines[2] == "| a | 2.000 ± 1.414 | not measured |"
    assert lines[3] == "| b | not measured | not measured |"
    assert lines[4] == "| c | 2.000 | not measured |"


def test_a_journal_continues_and_forgets_half_a_line(load: Load, tmp_path: Path) -> None:
    journal = load("journal")
    path = tmp_path / "work" / "runs.jsonl"
    first = journal.Journal(path, {"steps": 2})
    first.add("run", way="a", seed=0, figures={"kl": 1.0})
    with path.open("a") as file:
        file.write('{"kind": "run", "way": "b"')
    second = journal.Journal(path, {"steps": 2})
    assert second.find("run", way="a", seed=0)["figures"] == {"kl": 1.0}
    assert second.find("run", way="b") is None and second.find("search", way="a") is None
    second.add("run", way="b", seed=0)
    assert [r["way"] for r in journal.Journal(path, {"steps": 2}).all("run")] == ["a", "b"]
    with pytest.raises(ConfigError, match="steps 2; now it is 3"):
        journal.Journal(path, {"steps": 3})


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_key_of_the_gpu_sized_settings_is_known(load: Load, script: str) -> None:
    from cachekd_cli.options import build, values_of
    from transformers import TrainingArguments

    content = yaml.safe_load((FOLDER / f"{script}.yaml").read_text())
    settings = load("settings")
    module = load(script)
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type)]
    own = max(
        (kind for kind in kinds if issubclass(kind, settings.Settings)),
        key=lambda kind: len(fields(kind)),
    )
    assert set(content) <= {item.name for item in fields(own)}
    build(own, values_of(own, {}, {**content, "work": "w"}))
    for name, kind in (
        ("precompute", PrecomputeConfig),
        ("train", TrainConfig),
        ("live", TrainConfig),
        ("training", TrainingArguments),
        ("evaluate", EvaluateConfig),
    ):
        assert set(content.get(name, {})) <= {item.name for item in fields(kind)}, name


@pytest.mark.parametrize("script", SCRIPTS)
def test_orderings_speak_of_ways_that_are_run(load: Load, script: str) -> None:
    module = load(script)
    found = module.orderings(0.01) if script == "dae" else module.orderings()
    assert len({(one.better, one.worse, one.metric) for one in found}) == len(found)
    ways = {
        "kd_attention": lambda: module.ways_of("c"),
        "multi_granularity": module.ways_of,
        "cached_against_live": lambda: module.ways_of(dict.fromkeys(module.SELECTIONS, "c")),
    }
    if script in ways:
        names = {way.name for way in ways[script]()}
        assert {name for one in found for name in (one.better, one.worse)} <= names
    judge = load("orderings")
    for one in found:
        assert judge.judged(one, [])["verdict"].startswith("not judged")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_reproduction_runs_and_continues(
    load: Load,
    family: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
) -> None:
    command = [str(FOLDER / f"{script}.py"), *flags_of(family, tmp_path, script)]
    monkeypatch.setattr(sys, "argv", command)
    journal = tmp_path / "work" / "runs.jsonl"

    def run() -> tuple[str, str]:
        module = load(script)
        capsys.readouterr()
        kind = getattr(module, KINDS.get(script, "Settings"))
        with pytest.raises(SystemExit) as ended:
            load("settings").run_command(kind, module.reproduce, None)
        assert not ended.value.code
        return capsys.readouterr().out.rpartition("\n### ")[2], journal.read_text()

    tables, records = run()
    result = json.loads((tmp_path / "results" / f"reproduce_{script}.json").read_text())
    assert result["command"].startswith(f"python benchmarks/reproduce/{script}.py --teacher DATA")
    assert str(tmp_path) not in result["command"]
    assert all(ordering["pairs"] == 1 for ordering in result["orderings"])
    for row in result["table"]:
        assert row["seeds"] == [0] and row["steps"] == (0 if row["way"] == "start" else 2)
        for name, figure in row["figures"].items():
            assert name.endswith(("excess", "error", "alive")) or figure["mean"] is not None, name
    assert "| ordering |" in tables
    if script == SCRIPTS[0]:  # the journal is one for all
        assert run() == (tables, records)


KINDS = {"kd_attention": "KDSettings", "dae": "DAESettings", "minillm": "MiniLLMSettings"}


def flags_of(family: Family, folder: Path, script: str) -> list[str]:
    """Two steps of the tiny family."""
    data = write_rows(folder / "data.jsonl", chat_rows(12))
    held = write_rows(folder / "held.jsonl", chat_rows(4, 70))
    flags: dict[str, object] = {
        "teacher": family.teacher,
        "student": family.student,
        "data": data,
        "dev-data": held,
        "test-data": held,
        "samples": 8,
        "prompts": 2,
        "steps": 2,
        "batch-size": 4,
        "max-length": 100,
        "max-new-tokens": 6,
        "seeds": "0",
        "draws": "1",
        "learning-rates": "1e-3",
        "work": folder / "work",
        "results": folder / "results",
    }
    if script == "dae":
        general = write_rows(folder / "general.jsonl", chat_rows(8, 40))
        flags |= {"general-teacher": family.teacher, "general-data": general}
        flags |= {"general-test-data": held, "general-steps": 2}
    if script == "minillm":
        flags |= {"collect": 4, "inner-epochs": 2}
    return [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
