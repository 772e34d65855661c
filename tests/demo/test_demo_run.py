"""The shipped teacher is whole and small, and the demo shows what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cachekd.demo.corpus import split_documents
from cachekd.demo.page import HEADER, write_report
from cachekd.demo.run import EVALUATIONS, RUNS, TEACHER, run_demo, summary_rows


def _result() -> dict[str, object]:
    def run(kl: float) -> dict[str, object]:
        history = [
            {"step": step, **row}
            for step in (1, 2)
            for row in ({"ce": 5.0 - step}, {"eval_kl": kl - step / 10, "eval_ce": 5.0 - step})
        ]
        return {"history": history, "final": {"eval_kl": kl - 0.2, "eval_ce": 3.0}}

    return {
        "steps": 2,
        "seed": 0,
        "seconds": 1.0,
        "teacher": {"ce": 2.0, "rows": 10},
        "runs": {"text only": run(2.2), "distilled": run(1.2)},
    }


def test_teacher_folder_is_small_and_complete() -> None:
    sizes = {path.name: path.stat().st_size for path in TEACHER.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(sizes)
    assert sum(sizes.values()) < 6_000_000


def test_teacher_tokenizer_fits_its_model() -> None:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer, config = AutoTokenizer.from_pretrained(TEACHER), AutoConfig.from_pretrained(TEACHER)
    entries = json.loads((TEACHER / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert len(tokenizer) == len(entries) == config.vocab_size == 2048
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == config.eos_token_id == 0
    assert tokenizer.unk_token is None
    text = "naïve \N{SNOWMAN}\n\tfor x in y:"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_teacher_predicts_heldout_text_as_its_readme_says() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    model = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    total, tokens = 0.0, 0
    for text in split_documents().heldout:
        ids_1T = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            total += float(model(input_ids=ids_1T, labels=ids_1T).loss) * (ids_1T.shape[1] - 1)
        tokens += ids_1T.shape[1] - 1
    said = (TEACHER / "README.md").read_text(encoding="utf-8").split("held-out loss | ")[1]
    # Another Python version has other topics, so the figure holds within a few tenths only.
    assert total / tokens == pytest.approx(float(said.split()[0]), abs=0.4)


def test_summary_has_a_row_for_each_model() -> None:
    rows = summary_rows(_result())
    assert rows[0] == HEADER
    assert [row[:3] for row in rows[1:]] == [
        ("teacher", "0.000", "2.000"),
        ("student, text only", "2.000", "3.000"),
        ("student, distilled", "1.000", "3.000"),
    ]


def test_page_states_the_gain(tmp_path: Path) -> None:
    write_report(tmp_path / "page.html", _result())
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "1.000 nats per token for the distilled student against 2.000 (-50%)" in page
    assert page.count("<svg") == 3
    assert page.count("<polyline") == 6


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_demo_distils_better_than_text_alone(tmp_path: Path, seed: int) -> None:
    lines: list[str] = []
    result = run_demo(tmp_path / "demo", steps=60, seed=seed, report=lines.append)
    plain, distilled = (result["runs"][name]["final"] for name in RUNS)
    assert distilled["eval_kl"] < plain["eval_kl"]
    assert Path(result["page"]).read_text(encoding="utf-8").count("<polyline") == 6
    phases = [line[:3] for line in lines if not line.startswith(" ")]
    assert phases == ["1/4", "2/4", "3/4", "4/4"]
    assert sum("held-out KL to the teacher" in line for line in lines) >= 2 * EVALUATIONS
    assert any("tokens/s" in line for line in lines)
    steps = [[row["step"] for row in run["history"]] for run in result["runs"].values()]
    assert steps[0] == steps[1]


@pytest.mark.slow
def test_demo_again_uses_the_cache_and_gives_the_same(tmp_path: Path) -> None:
    first = run_demo(tmp_path, steps=4, seed=1)
    shards = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache*/logits/*")}
    second = run_demo(tmp_path, steps=4, seed=1)
    assert shards
    assert shards == {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache*/logits/*")}
    assert summary_rows(first) == summary_rows(second)
