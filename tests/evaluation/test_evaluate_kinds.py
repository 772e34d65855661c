"""Other kinds of what ``cachekd evaluate`` takes: a cache in place of a teacher, an adapter."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Family, Ran, chat_rows, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

import cachekd as package
from cachekd.config import EvaluateConfig
from cachekd.evaluation import heldout

Run = Callable[..., Ran]


def test_cache_gives_forward_kl_alone(cachekd: Run, family: Family, tmp_path: Path) -> None:
    data, cache = write_rows(tmp_path / "d.jsonl", chat_rows(4)), tmp_path / "cache"
    flags = ("--teacher", family.teacher, "--data", data, "--cache", cache)
    assert cachekd("precompute", *flags, "--logits-top-k", 16).code == 0
    config = EvaluateConfig(
        model=(str(family.student),),
        data=(str(data),),
        cache=str(cache),
        seeds=(1,),
        max_new_tokens=4,
    )
    report = package.evaluate(config)
    metrics = report["models"][0]["metrics"]
    model = AutoModelForCausalLM.from_pretrained(family.student)
    expected = package.heldout_kl(model, str(cache))
    assert metrics["cache_forward_kl"]["mean"] == pytest.approx(expected.kl)
    assert metrics["cache_tail_mass"]["mean"] == pytest.approx(expected.tail_mass)
    assert not {"forward_kl", "reverse_kl", "tvd"} & set(metrics), "nobody asked for them"
    assert len([note for note in report["notes"] if "--teacher" in note]) == 1
    assert report["cache"]["samples"] == 4


def test_a_preset_that_leaves_a_chat_template_aside_says_so(family: Family, tmp_path: Path) -> None:
    data, page = write_rows(tmp_path / "d.jsonl", chat_rows(2)), tmp_path / "page.html"
    plain = Path(shutil.copytree(family.student, tmp_path / "plain"))
    for file in ("tokenizer_config.json", "chat_template.jinja"):
        if (plain / file).is_file():
            text = (plain / file).read_text()
            (plain / file).unlink()
            if file.endswith("json"):
                kept = {k: v for k, v in json.loads(text).items() if k != "chat_template"}
                (plain / file).write_text(json.dumps(kept))
    settings: dict[str, Any] = {"data": (str(data),), "greedy": True, "max_new_tokens": 2}
    settings |= {"max_prompt_length": 60}
    settings |= {"model": (f"chat={family.student}", f"plain={plain}"), "preset": "paper"}
    said = package.evaluate(EvaluateConfig(**settings, out=str(page)))["notes"]
    assert len(said) == 1 and said[0].startswith("chat has a chat template")
    assert "plain" not in said[0] and said[0] in html.unescape(page.read_text())
    for further in ({"prompt_template": "alpaca"}, {"preset": "default"}):
        assert not package.evaluate(EvaluateConfig(**{**settings, **further}))["notes"]


@pytest.fixture
def stored(cachekd: Run, family: Family, tmp_path: Path) -> Path:
    """A cache of ten documents, two of them long."""
    rows = [{"text": "the cat sleeps"}] * 8 + [{"text": "the cat sings " * n} for n in (13, 15)]
    rows = [{"text": f"{number} {row['text']}"} for number, row in enumerate(rows)]
    data, cache = write_rows(tmp_path / "text.jsonl", rows), tmp_path / "cache"
    flags = ("--teacher", family.teacher, "--data", data, "--cache", cache)
    assert cachekd("precompute", *flags, "--logits-top-k", 16).code == 0
    return cache


@pytest.mark.parametrize("whole", [True, False])
def test_documents_of_a_cache_come_in_smaller_batches_where_memory_is_short(
    family: Family, stored: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    model = AutoModelForCausalLM.from_pretrained(family.student)
    expected = package.heldout_kl(model, str(stored))
    loss, sizes = heldout.batch_loss, []

    def short(model: Any, head: Any, batch: Any, *further: Any) -> Any:
        count, length = batch["input_ids"].shape
        sizes.append(count * length)
        if not whole and count > 3:
            raise torch.OutOfMemoryError("no room")
        return loss(model, head, batch, *further)

    monkeypatch.setattr(heldout, "batch_loss", short)
    found = package.heldout_kl(model, str(stored), batch_tokens=32 if whole else 4096)
    assert len(sizes) > 3 and (not whole or max(sizes[2:]) <= 32)
    assert found.rows == expected.rows and found.kl == pytest.approx(expected.kl)


def test_documents_that_a_context_cuts_are_counted(
    cachekd: Run, family: Family, stored: Path, tmp_path: Path
) -> None:
    short = Path(shutil.copytree(family.student, tmp_path / "short"))
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 64}))
    data = write_rows(tmp_path / "d.jsonl", [{"instruction": "i", "output": "a"}])
    flags = ("--model", short, "--data", data, "--cache", stored, "--seeds", 1)
    ran = cachekd("evaluate", *flags, "--max-new-tokens", 4, "--json")
    parts = ran.json["models"][0]["metrics"]["cache_forward_kl"]["parts"]
    assert parts["cut"] == [2] and parts["left_out"] == [0]
    said = "short: documents of the cache cut to the model's context: 2"
    assert said in cachekd("evaluate", *flags, "--max-new-tokens", 4).out


def test_a_document_that_fits_no_memory_names_the_model(
    cachekd: Run, family: Family, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(heldout, "batch_loss", full)
    data = write_rows(tmp_path / "d.jsonl", chat_rows(2))
    flags = ("--model", family.student, "--data", data, "--cache", stored, "--seeds", 1)
    ran = cachekd("evaluate", *flags, "--max-new-tokens", 4)
    assert ran.code == 1 and "Traceback" not in ran.err
    assert "model student" in ran.err and "out of memory" in ran.err


def test_an_adapter_folder_is_a_model(family: Family, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(family.student)
    adapted = get_peft_model(
        base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(family.student).save_pretrained(tmp_path / "merged")
    data = write_rows(tmp_path / "d.jsonl", chat_rows(3))
    config = EvaluateConfig(
        model=(str(tmp_path / "adapter"), str(tmp_path / "merged"), str(family.student)),
        data=(str(data),),
        teacher=str(family.teacher),
        seeds=(1,),
        max_new_tokens=4,
        exaccerr_lengths=(2,),
    )
    adapter, merged, plain = package.evaluate(config)["models"]
    assert [one["name"] for one in (adapter, merged)] == ["adapter", "merged"]
    for name in ("loss", "forward_kl", "reverse_kl"):
        assert adapter["metrics"][name]["mean"] == pytest.approx(
            merged["metrics"][name]["mean"], rel=1e-4
        )
        assert adapter["metrics"][name]["mean"] != plain["metrics"][name]["mean"]
    assert adapter["adapter"] and merged["adapter"] is None


def test_the_order_of_models_that_end_differently_changes_nothing(
    family: Family, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(family.student, tmp_path / "other"))
    path = other / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "<|user|>"}))
    models = (f"a={family.student}", f"b={other}")
    data = write_rows(tmp_path / "d.jsonl", chat_rows(8))
    found: list[dict[str, Any]] = []
    for order in (models, models[::-1]):
        config = EvaluateConfig(
            model=order,
            data=(str(data),),
            teacher=str(family.teacher),
            seeds=(1, 2),
            temperature=5.0,
            max_new_tokens=30,
            exaccerr_lengths=(10, 20),
        )
        report = package.evaluate(config)
        found.append({one["name"]: (one["exaccerr"], one["metrics"]) for one in report["models"]})
    assert found[0] == found[1]
    assert found[0]["a"][0]["teacher"] != found[0]["b"][0]["teacher"]
