"""Figures of runs: what differs, what is best, means over seeds, and gaps."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cachekd.config import ReportConfig
from cachekd.errors import DataError
from cachekd.overview import make_report
from cachekd.overview.evaluated import evaluated
from cachekd.overview.record import load_runs
from cachekd.overview.runs import runs_report
from cachekd.overview.runs_page import intro_of, sections_of
from cachekd.report.bars import Bars
from cachekd.training.figures import MOST_POINTS, curve

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def found(runs: tuple[Path, ...]) -> dict[str, Any]:
    return runs_report(load_runs(list(map(str, runs))))


def _facts(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return facts


def test_only_what_differs_is_told_to_differ(found: dict[str, Any]) -> None:
    differ = found["differences"]
    assert differ["seed"] == {"one": "1", "two": "2", "plain": "1"}
    assert differ["objective"] == {"one": "kd", "two": "kd", "plain": "sft"}
    assert "output_dir" not in differ and "learning_rate" not in differ
    assert found["same_for_all"]["learning_rate"] == "0.001"
    assert not set(differ) & set(found["same_for_all"])


def test_seeds_are_the_means_of_their_runs(found: dict[str, Any], runs: tuple[Path, ...]) -> None:
    group, alone = found["groups"]
    assert group["runs"] == ["one", "two"] and group["seeds"] == ["1", "2"]
    values = [_facts(run)["final_eval"]["eval_kl"] for run in runs[:2]]
    figures = group["figures"]["eval_kl"]
    assert figures["mean"] == pytest.approx(sum(values) / 2)
    assert figures["deviation"] == pytest.approx(statistics.stdev(values))
    assert figures["deviation"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    assert "±" in " ".join(intro_of(found))
    values = [_facts(runs[2])["final_eval"]["eval_kl"]]
    assert alone["figures"]["eval_kl"] == {"mean": values[0], "deviation": None, "runs": 1}
    assert [one["name"] for one in found["groups"]] == ["objective kd", "objective sft"]
    (table,) = sections_of(found)[1].tables
    shown = {row[0]: row[1:] for row in table.rows}
    assert shown["n"] == ("2", "1") and shown["runs"] == ("one, two", "plain")
    assert "±" in shown["eval kl"][0] and shown["eval kl"][1] == f"{values[0]:.4f}"


def test_groups_are_named_by_the_fewest_settings_that_tell_them_apart(
    runs: tuple[Path, ...], record_of: Write
) -> None:
    own = _facts(runs[0])["training_arguments"]
    made = [
        record_of(f"{rate} {seed}", training_arguments={**own, "seed": seed, "learning_rate": rate})
        for rate in (0.1, 0.2)
        for seed in (1, 2)
    ]
    names = ["x" * 300, "y" * 300]
    for folder, name in zip(made, [names[0], names[0], names[1], names[1]], strict=True):
        facts = {**_facts(folder), "student": name}
        (folder / "run.json").write_text(json.dumps(facts))
    found = runs_report(load_runs(list(map(str, made))))
    assert {"student", "learning_rate", "seed"} <= set(found["differences"])
    for group in found["groups"]:
        assert len(group["name"]) < 100 and ", " not in group["name"]
    assert len({group["name"] for group in found["groups"]}) == 2
    plots = sections_of(found)[1].plots
    assert plots and all(len(one.groups) == 2 for one in plots if isinstance(one, Bars))


def test_one_group_alone_has_no_bars(runs: tuple[Path, ...]) -> None:
    found = runs_report(load_runs(list(map(str, runs[:2]))))
    section = sections_of(found)[1]
    assert section.heading == "Over seeds" and not section.plots


def test_runs_of_equal_seeds_stand_alone_beside_means(
    runs: tuple[Path, ...], record_of: Write
) -> None:
    same = [record_of(name, objective={"options": {"o": "1"}}) for name in ("a", "b")]
    found = runs_report(load_runs([*map(str, runs[:2]), *map(str, same)]))
    assert [group["runs"] for group in found["groups"]] == [["one", "two"], ["a"], ["b"]]
    assert len({group["name"] for group in found["groups"]}) == 3


def test_best_is_the_lowest_where_runs_can_be_compared(
    found: dict[str, Any], runs: tuple[Path, ...]
) -> None:
    values = {run.name: _facts(run)["final_eval"]["eval_ce"] for run in runs}
    assert found["best"]["eval_ce"] == min(values, key=lambda name: values[name])
    rates = {run.name: _facts(run)["throughput"]["tokens_per_second"] for run in runs}
    assert found["best"]["tokens_per_second"] == max(rates, key=lambda name: rates[name])
    assert "eval_loss" not in found["best"], "losses of two objectives do not compare"
    same = runs_report(load_runs(list(map(str, runs[:2]))))
    assert "eval_loss" in same["best"]


def test_runs_that_ended_otherwise_are_no_seeds_of_one_and_their_times_do_not_compare(
    runs: tuple[Path, ...], record_of: Write
) -> None:
    second = {**_facts(runs[1])["training_arguments"]}
    stopped = record_of("stopped", status="interrupted", steps=2, training_arguments=second)
    report = runs_report(load_runs([str(runs[0]), str(stopped)]))
    assert report["groups"] == [] and "training_seconds" not in report["best"]
    third = record_of("third", training_arguments={**second, "seed": 3})
    report = runs_report(load_runs([str(run) for run in (*runs[:2], third, stopped)]))
    group, alone = report["groups"]
    assert group["runs"] == ["one", "two", "third"] and "ended done at step 4" in group["name"]
    assert alone["runs"] == ["stopped"] and alone["name"] == "ended interrupted at step 2"
    assert "training_seconds" in runs_report(load_runs(list(map(str, runs[:2]))))["best"]


def test_other_held_out_data_is_not_compared(runs: tuple[Path, ...], record_of: Write) -> None:
    other = record_of("other", eval_cache={"name": "other", "root": "x"})
    report = runs_report(load_runs([str(runs[0]), str(other)]))
    assert not [name for name in report["best"] if name.startswith("eval_")]


def test_curves_are_those_of_the_records(found: dict[str, Any], runs: tuple[Path, ...]) -> None:
    shown = {(one["figure"], one["on"]): one["lines"] for one in found["curves"]}
    for line, run in zip(shown["loss", "training"], runs, strict=True):
        rows = [row for row in _facts(run)["history"] if "loss" in row]
        assert line["run"] == run.name
        assert line["steps"] == [row["step"] for row in rows] == [1, 2, 3, 4]
        assert line["values"] == [row["loss"] for row in rows]
    held_out = shown["ce", "held-out cache or text"]
    assert [line["run"] for line in held_out] == ["one", "two", "plain"]
    assert held_out[0]["steps"] == [2, 4]


def test_figures_that_are_no_numbers_leave_a_gap(record_of: Write) -> None:
    rows = [{"step": i, "loss": v} for i, v in enumerate([2.0, math.nan, 1.0, math.inf])]
    folder = record_of(history=rows, final_eval={"eval_kl": math.nan, "eval_ce": 1.0})
    report = runs_report(load_runs([str(folder)]))
    (curve_shown,) = report["curves"]
    assert curve_shown["lines"][0]["values"] == [2.0, None, 1.0, None]
    assert report["runs"][0]["final"]["eval_kl"] is None
    json.dumps(report, allow_nan=False)
    (table,) = sections_of(report)[0].tables
    assert table.rows[0][table.header.index("eval kl")] == "-"


def test_a_stopped_run_and_one_that_was_killed_are_shown(record_of: Write) -> None:
    gone = dict.fromkeys(("history", "throughput", "final_eval", "rollouts", "steps"), ...)
    stopped = record_of("stopped", status="interrupted", final_eval=...)
    killed = record_of("killed", status="running", **gone)
    report = runs_report(load_runs([str(stopped), str(killed)]))
    assert [run["status"] for run in report["runs"]] == ["interrupted", "running"]
    assert "eval_kl" not in report["runs"][0]["final"]
    said = " ".join(intro_of(report))
    assert "killed has no history" in said and "stopped has no history" not in said
    assert len(report["curves"][0]["lines"]) == 1


def test_runs_without_a_figure_in_common_have_their_own_curves(record_of: Write) -> None:
    folders = [
        record_of(name, history=[{"step": 1, name: 0.5}], final_eval={f"eval_{name}": 0.5})
        for name in ("alpha", "beta")
    ]
    report = runs_report(load_runs(list(map(str, folders))))
    lines = {one["figure"]: [line["run"] for line in one["lines"]] for one in report["curves"]}
    assert lines == {"alpha": ["alpha"], "beta": ["beta"]}
    header = sections_of(report)[0].tables[0].header
    assert "eval alpha" in header and "eval beta" in header


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    history = [{"step": float(i), "loss": float(i)} for i in range(5 * MOST_POINTS + 7)]
    steps, values = curve(history, "loss")
    assert len(steps) <= MOST_POINTS + 1 and steps == values
    assert (steps[0], steps[-1]) == (0, 5 * MOST_POINTS + 6)


def test_equal_names_are_told_apart(runs: tuple[Path, ...], record_of: Write) -> None:
    names = [run.name for run in load_runs([str(runs[0]), str(record_of("one"))])]
    assert len(set(names)) == 2 and all(name.endswith("/one") for name in names)


def test_on_policy_costs_have_a_table_of_their_own(record_of: Write) -> None:
    rollouts = {
        "rollouts": 12,
        "scores": {"rows": 30},
        "seconds": {"writing": 1.25, "lost": math.nan},
    }
    report = runs_report(load_runs([str(record_of(rollouts=rollouts))]))
    json.dumps(report, allow_nan=False)
    (section,) = [one for one in sections_of(report) if one.heading == "On-policy costs"]
    assert ("teacher: rows", "30") in section.tables[0].rows
    assert ("seconds: writing", "1.25") in section.tables[0].rows


def test_a_long_setting_that_differs_at_its_end_differs(record_of: Write) -> None:
    config = json.loads((record_of("base") / "run.json").read_text())["config"]
    long = [{**config, "notes": "x" * 500 + end} for end in "ab"]
    folders = [record_of(f"r{i}", config=own) for i, own in enumerate(long)]
    report = runs_report(load_runs(list(map(str, folders))))
    assert set(report["differences"]) == {"notes"}


def test_evaluations_join_the_final_figures(runs: tuple[Path, ...], tmp_path: Path) -> None:
    scores = {run: 10.0 * i for i, run in enumerate(runs[:2], 1)}
    for run, score in scores.items():
        metrics = {"rouge_l": {"mean": score, "deviation": 0.1}, "ece": {"mean": None}}
        models = [{"path": str(run), "metrics": metrics}, {"path": "elsewhere", "metrics": {}}]
        (tmp_path / f"{run.name}.json").write_text(json.dumps({"models": models}))
    loaded = load_runs(list(map(str, runs)))
    files = [str(tmp_path / f"{run.name}.json") for run in scores]
    report = runs_report(loaded, evaluated(files, loaded))
    assert [run["final"].get("evaluated_rouge_l") for run in report["runs"]] == [10.0, 20.0, None]
    group, alone = report["groups"]
    assert group["figures"]["evaluated_rouge_l"]["mean"] == 15.0
    assert "evaluated_rouge_l" not in alone["figures"]
    (table,) = sections_of(report)[0].tables
    column = table.header.index("evaluated rouge l")
    assert [row[column] for row in table.rows] == ["10.0000", "20.0000", "-"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"settings": {"data": ["a"], "seeds": [10]}}, "seeds"),
        ({"settings": {"data": ["b"], "seeds": [20]}}, "data"),
        ({"data": {"examples": 4}}, "examples"),
        ({"settings": {"data": ["a"], "seeds": [20], "model": ["y"], "out": "o"}}, None),
    ],
)
def test_evaluations_of_another_kind_are_not_averaged(
    runs: tuple[Path, ...], tmp_path: Path, changed: dict[str, Any], said: str | None
) -> None:
    way = {"settings": {"data": ["a"], "seeds": [20], "model": ["x"]}, "data": {"examples": 3}}
    for run, further in zip(runs[:2], ({}, changed), strict=True):
        metrics = {"rouge_l": {"mean": 1.0}}
        report = {**way, **further, "models": [{"path": str(run), "metrics": metrics}]}
        (tmp_path / f"{run.name}.json").write_text(json.dumps(report))
    files = [str(tmp_path / f"{run.name}.json") for run in runs[:2]]
    loaded = load_runs(list(map(str, runs[:2])))
    if said is None:
        assert len(evaluated(files, loaded)) == 2
        return
    with pytest.raises(DataError, match=f"two.json: expected an evaluation as in .*{said}"):
        evaluated(files, loaded)


def test_a_report_of_runs_is_a_page_with_its_pictures(
    runs: tuple[Path, ...], tmp_path: Path
) -> None:
    report = make_report(
        ReportConfig(
            paths=tuple(map(str, runs[:2])),
            out=str(tmp_path / "new" / "runs.html"),
            plots_dir=str(tmp_path / "figures"),
        )
    )
    page = (tmp_path / "new" / "runs.html").read_text(encoding="utf-8")
    assert page.count("<svg") == len(report["plots"]) == len(list((tmp_path / "figures").iterdir()))
    assert f"<td>{'seed'}</td><td>1</td><td>2</td>" in page
