"""``cachekd evaluate`` from end to end on tiny models."""

from __future__ import annotations

import json
import statistics
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from tiny import Family, Ran, chat_rows, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

import cachekd as package
from cachekd.config import EvaluateConfig

Run = Callable[..., Ran]
Report = dict[str, Any]
SEEDS = (10, 20, 30)


def rows() -> list[dict[str, Any]]:
    """Instructions, one of them twice, one with two references."""
    some = chat_rows(5)
    some[1]["output"] = [some[1]["output"], "the cat sleeps"]
    return [*some, some[0]]


@pytest.fixture(scope="module")
def made(family: Family, tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluateConfig, Report]:
    """Two models beside a teacher, with pages."""
    folder = tmp_path_factory.mktemp("evaluated")
    config = EvaluateConfig(
        model=(f"small={family.student}", str(family.teacher)),
        data=(str(write_rows(folder / "data.jsonl", rows())),),
        teacher=str(family.teacher),
        seeds=SEEDS,
        max_new_tokens=12,
        exaccerr_lengths=(2, 6, 12, 50),
        out=str(folder / "pages" / "page.html"),
        markdown=str(folder / "table.md"),
        responses=str(folder / "written.jsonl"),
    )
    stages: list[str] = []
    report = package.evaluate(config, progress=lambda stage, done, total: stages.append(stage))
    assert {"small: seed 20", "small: loss", "teacher: seed 10", "small: ExAccErr"} <= set(stages)
    return config, report


@pytest.fixture(scope="module")
def report(made: tuple[EvaluateConfig, Report]) -> Report:
    return made[1]


def small(report: Report) -> dict[str, Any]:
    metrics: dict[str, Any] = report["models"][0]["metrics"]
    return metrics


def test_it_is_plain_json_and_in_order(report: Report, family: Family) -> None:
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert [model["name"] for model in report["models"]] == ["small", "teacher"]
    assert report["models"][0]["path"] == str(family.student)
    assert report["teacher"]["source_id"] == report["models"][1]["source_id"]
    assert report["data"] == {"examples": 6, "references": 7, "skipped": {}}
    assert report["settings"]["seeds"] == list(SEEDS)
    assert report["versions"]["rouge-score"]


def test_figures_are_means_and_sample_deviations(report: Report) -> None:
    for figure in small(report).values():
        values = figure["values"]
        if figure["mean"] is None:
            continue
        assert figure["mean"] == pytest.approx(statistics.fmean(values), abs=1e-4)
        if len(values) > 1:
            assert figure["deviation"] == pytest.approx(statistics.stdev(values), abs=1e-4)
        else:
            assert figure["deviation"] is None
    assert len(small(report)["rouge_l"]["values"]) == len(SEEDS)
    assert len(small(report)["loss"]["values"]) == 1


def test_a_model_that_is_the_teacher_has_no_distance_to_it(report: Report) -> None:
    own = report["models"][1]["metrics"]
    for name in ("forward_kl", "reverse_kl", "tvd"):
        assert own[name]["mean"] == 0.0
        assert small(report)[name]["mean"] > 0.01
    assert own["exaccerr_6"]["mean"] is None and "is 0" in own["exaccerr_6"]["why"]
    assert "exaccerr_50" not in own, "no response can be so long"


@pytest.fixture(scope="module")
def by_hand(family: Family) -> Callable[[dict[str, Any], int], dict[str, Any]]:
    """Loss and greedy text of a row, with transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(family.student).eval()
    tokenizer = AutoTokenizer.from_pretrained(family.student)

    def run(row: dict[str, Any], new: int) -> dict[str, Any]:
        gold = row["output"] if isinstance(row["output"], str) else row["output"][0]
        turn = [{"role": "user", "content": row["instruction"]}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = tokenizer(f"{text}{gold}<|end|>", add_special_tokens=False)["input_ids"]
        response = whole[len(prompt) :][:new]
        with torch.no_grad():
            ids = torch.tensor([prompt + response])
            log_q = torch.log_softmax(model(ids).logits[0].double(), -1)
            out = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                do_sample=False,
                max_new_tokens=new,
                eos_token_id=[0, tokenizer.convert_tokens_to_ids("<|end|>")],
                pad_token_id=1,
            )
        nll = [-float(log_q[len(prompt) - 1 + i, token]) for i, token in enumerate(response)]
        said = tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)
        return {"nll": nll, "text": said.strip()}

    return run


def test_loss_is_that_of_a_loop(
    report: Report, by_hand: Callable[[dict[str, Any], int], dict[str, Any]]
) -> None:
    losses = [by_hand(row, 12)["nll"] for row in rows()]
    expected = np.mean([np.mean(loss) for loss in losses])
    assert small(report)["loss"]["mean"] == pytest.approx(expected, rel=1e-4)
    expected = np.mean(np.concatenate(losses))
    assert small(report)["loss_token_mean"]["mean"] == pytest.approx(expected, rel=1e-4)


def test_greedy_rouge_is_that_of_generate_and_the_library(
    made: tuple[EvaluateConfig, Report],
    family: Family,
    by_hand: Callable[[dict[str, Any], int], dict[str, Any]],
) -> None:
    config = EvaluateConfig(
        model=(str(family.student),), data=made[0].data, greedy=True, max_new_tokens=20
    )
    (model,) = package.evaluate(config)["models"]
    scorer, scores = RougeScorer(["rougeL"], use_stemmer=True), []
    for row in rows():
        text = by_hand(row, 20)["text"]
        known = row["output"] if isinstance(row["output"], list) else [row["output"]]
        scores.append(max(scorer.score(one, text)["rougeL"].fmeasure for one in known))
    figure = model["metrics"]["rouge_l"]
    assert figure["values"] == [round(100 * float(np.mean(scores)), 4)]
    assert figure["deviation"] is None and model["name"] == "student"


def test_the_batch_changes_nothing_and_seeds_do(
    made: tuple[EvaluateConfig, Report], family: Family
) -> None:
    config, report = made
    again = EvaluateConfig(
        model=(f"small={family.student}",),
        data=config.data,
        seeds=(20,),
        max_new_tokens=12,
        batch_tokens=1,
    )
    figures = package.evaluate(again)["models"][0]["metrics"]
    for name in ("rouge_l", "distinct_1", "distinct_4", "response_tokens", "ended"):
        assert figures[name]["values"] == [small(report)[name]["values"][1]], name
    assert figures["loss"]["mean"] == pytest.approx(small(report)["loss"]["mean"], rel=1e-5)
    assert len(set(small(report)["rouge_l"]["values"])) > 1


def test_distinct_tells_its_counts(report: Report) -> None:
    figure = small(report)["distinct_2"]
    for value, some, every in zip(
        figure["values"], figure["parts"]["distinct"], figure["parts"]["total"], strict=True
    ):
        assert value == pytest.approx(100 * some / every)
    length = small(report)["response_tokens"]["values"][0]
    assert small(report)["distinct_1"]["parts"]["total"][0] == pytest.approx(6 * length)


def test_pages_hold_the_figures(made: tuple[EvaluateConfig, Report]) -> None:
    config, report = made
    table, page = Path(str(config.markdown)).read_text(), Path(str(config.out)).read_text()
    rouge = small(report)["rouge_l"]
    cell = f"{rouge['mean']:.2f} ± {rouge['deviation']:.2f}"
    assert f"| ROUGE-L | {cell} |" in table and "|  | small | teacher |" in table
    assert "- teacher: ExAccErr at 6 tokens, %: not measured: the error" in table
    page = page.replace("\u00a0", " ")  # figures stay on one line
    assert cell in page and "ROUGE-L, mean ± deviation over seeds" in page
    assert "ExAccErr by response length" in page and "<polyline" in page
    assert "Reliability" not in page and "http" not in page.replace("http://www.w3.org", "")


def test_every_response_is_written_beside_its_references(
    made: tuple[EvaluateConfig, Report],
) -> None:
    config, report = made
    written = [json.loads(line) for line in Path(str(config.responses)).read_text().splitlines()]
    assert len(written) == 2 * len(SEEDS) * len(rows())
    own = [one for one in written if one["model"] == "small" and one["seed"] == 20]
    assert [one["row"] for one in own] == sorted(one["row"] for one in own)
    assert own[1]["references"] == rows()[1]["output"]
    mean = statistics.mean(one["rouge_l"] for one in own)
    assert mean == pytest.approx(small(report)["rouge_l"]["values"][1], abs=1e-3)
    ended = statistics.mean(100 * one["ended"] for one in own)
    assert ended == pytest.approx(small(report)["ended"]["values"][1])
    tokens = statistics.mean(one["tokens"] for one in own)
    assert tokens == pytest.approx(small(report)["response_tokens"]["values"][1])
    assert "written" not in report["models"][0]


def test_the_command_prints_a_table(cachekd: Run, family: Family, data: Path) -> None:
    flags = ("--model", f"a={family.student}", "--data", data, "--max-samples", 3)
    short = ("--seeds", "1", "--max-new-tokens", 5)
    ran = cachekd("evaluate", *flags, *short)
    assert ran.code == 0, ran.err
    assert "ROUGE-L" in ran.out and "3 examples, 1 seed" in ran.out and "±" not in ran.out
    assert "a: seed 1: 3 of 3 examples" in ran.err
    ran = cachekd("evaluate", *flags, *short, "--json")
    assert ran.json["models"][0]["metrics"]["rouge_l"]["deviation"] is None
    assert (
        f"{ran.json['models'][0]['metrics']['loss']['mean']:.4f}"
        in cachekd("evaluate", *flags, *short).out
    )


def test_a_yaml_file_says_the_same(
    cachekd: Run, family: Family, data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "evaluate.yaml"
    path.write_text(
        f"model: [a={family.student}, b={family.teacher}]\ndata: {data}\nmax_samples: 2\n"
        "seeds: [3, 4]\nmax-new-tokens: 9\nmax_prompt_length: 90\npreset: paper\n"
    )
    report = cachekd("evaluate", "--config", path, "--max-new-tokens", 3, "--json").json
    settings = report["settings"]
    assert [model["name"] for model in report["models"]] == ["a", "b"]
    assert settings["seeds"] == [3, 4] and settings["max_new_tokens"] == 3
    assert settings["no_repeat_ngram_size"] == 6 and settings["prompt_template"] == "alpaca"


def test_a_model_is_let_go_before_the_next(
    made: tuple[EvaluateConfig, Report], family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cachekd.evaluation import run as module

    load, held = module.load, []

    def watched(found: Any) -> Any:
        assert all(reference() is None for reference in held), "two models at once"
        model = load(found)
        held.append(weakref.ref(model))
        return model

    monkeypatch.setattr(module, "load", watched)
    models = (str(family.student), f"again={family.student}", str(family.teacher))
    config = EvaluateConfig(model=models, data=made[0].data, seeds=(1,), max_new_tokens=2)
    found = package.evaluate(config)["models"]
    assert len(held) == 3 and found[0]["metrics"] == found[1]["metrics"]


def test_flags_go_before_the_preset() -> None:
    config = EvaluateConfig(model=("m",), data=("d",), preset="paper")
    assert config.protocol.no_repeat_ngram_size == 6
    assert config.protocol.prompt_template == "alpaca"
    assert config.protocol.truncation_side == "right"
    config = EvaluateConfig(
        model=("m",), data=("d",), preset="paper", no_repeat_ngram_size=0, truncation_side="left"
    )
    assert config.protocol.no_repeat_ngram_size == 0 and config.protocol.truncation_side == "left"
    assert config.protocol.prompt_template == "alpaca"
    assert EvaluateConfig(model=("m",), data=("d",)).protocol.no_repeat_ngram_size == 0


def test_calibration_on_label_words(family: Family, tmp_path: Path) -> None:
    some = [{"instruction": f"is it {n}", "output": ("yes", "no")[n % 2]} for n in range(6)]
    config = EvaluateConfig(
        model=(str(family.student),),
        data=(str(write_rows(tmp_path / "d.jsonl", some)),),
        label_words=("yes", "no"),
        seeds=(1,),
        max_new_tokens=2,
        out=str(tmp_path / "page.html"),
    )
    (model,) = package.evaluate(config)["models"]
    bins = [one for one in model["reliability"] if one["count"]]
    assert sum(one["count"] for one in bins) == 6
    expected = sum(one["count"] / 6 * abs(one["accuracy"] - one["confidence"]) for one in bins)
    assert model["metrics"]["ece"]["mean"] == pytest.approx(expected)
    assert 0 < model["metrics"]["label_mass"]["mean"] < 1
    assert "Reliability: accuracy against confidence" in (tmp_path / "page.html").read_text()
