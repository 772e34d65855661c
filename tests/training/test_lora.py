"""LoRA: the base stays, the adapter learns, resuming is exact, wrong settings are refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Family

import cachekd
from cachekd.config import TrainConfig
from cachekd.errors import ConfigError, Incomplete, MismatchError

Make = Callable[..., TrainConfig]


def _adapter(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=torch.arange(6, 30)[None]).logits
    return logits


def test_adapter_is_trained_on_an_unchanged_base(
    config: Make, family: Family, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report = cachekd.train(config(lora_r=2, training={"save_strategy": "no"}))
    out = tmp_path / "out"
    assert not (out / "model.safetensors").exists()
    assert len(AutoTokenizer.from_pretrained(out)) == family.vocab
    settings = json.loads((out / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (2, 16, 0.05)
    assert settings["base_model_name_or_path"] == str(family.student)
    base = AutoModelForCausalLM.from_pretrained(family.student)
    loaded = AutoPeftModelForCausalLM.from_pretrained(out)
    with loaded.disable_adapter():
        assert torch.equal(_logits(loaded), _logits(base))
    assert (_logits(loaded) - _logits(base)).abs().max() > 1e-3
    adapted = {name.rsplit(".lora", 1)[0].rsplit(".", 1)[1] for name in _adapter(out)}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    trained = sum(value.numel() for value in _adapter(out).values())
    assert report["trained_parameters"] == trained < report["parameters"] / 5


def test_interrupted_adapter_continues_to_the_same_weights(
    config: Make, tmp_path: Path, interrupt: Callable[[int], None]
) -> None:
    cachekd.train(config("whole", lora_r=2, lora_dropout=0.3))
    interrupt(3)
    with pytest.raises(Incomplete):
        cachekd.train(config("parts", lora_r=2, lora_dropout=0.3))
    resume = {"resume_from_checkpoint": True}
    cachekd.train(config("parts", lora_r=2, lora_dropout=0.3, training=resume))
    whole, parts = _adapter(tmp_path / "whole"), _adapter(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_reach_the_adapter_through_recomputed_layers(
    config: Make, tmp_path: Path, reentrant: bool
) -> None:
    once = {"save_strategy": "no", "max_steps": 2}
    cachekd.train(config("plain", lora_r=2, lora_dropout=0.0, training=once))
    again = {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": reentrant},
    }
    cachekd.train(config("again", lora_r=2, lora_dropout=0.0, training=once | again))
    plain, recomputed = _adapter(tmp_path / "plain"), _adapter(tmp_path / "again")
    for name, value in plain.items():
        assert torch.allclose(value, recomputed[name], atol=1e-6)
        if "lora_B" in name:
            assert recomputed[name].abs().max() > 0


def test_chosen_modules_and_modules_to_save(config: Make, tmp_path: Path) -> None:
    chosen = {"lora_target_modules": ("q_proj",), "lora_modules_to_save": ("lm_head",)}
    cachekd.train(config(lora_r=2, **chosen, training={"max_steps": 1, "save_strategy": "no"}))
    names = _adapter(tmp_path / "out").keys()
    assert all("q_proj" in name or "lm_head" in name for name in names)
    assert any("lm_head" in name for name in names)


def test_packed_adapter(config: Make) -> None:
    report = cachekd.train(config(lora_r=2, packing=True, training={"save_strategy": "no"}))
    assert report["status"] == "done" and report["history"][0]["loss"] > 0


def test_wrong_settings_are_refused(config: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora_alpha has no meaning without lora_r"):
        config(lora_alpha=8)
    with pytest.raises(ConfigError, match="lora_r: expected at least 1"):
        config(lora_r=0)
    with pytest.raises(ConfigError, match="lora_dropout: expected 0 up to 1"):
        config(lora_r=2, lora_dropout=1.0)
    with pytest.raises(ConfigError, match=r"lora_target_modules.*nowhere"):
        cachekd.train(config(lora_r=2, lora_target_modules=("nowhere",)))
    assert not (tmp_path / "out").exists()


def test_without_peft_the_extra_is_named(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'cachekd\[peft\]'"):
        cachekd.train(config(lora_r=2))


def test_an_adapter_alone_is_no_student(config: Make, tmp_path: Path) -> None:
    cachekd.train(config(lora_r=2, training={"max_steps": 1, "save_strategy": "no"}))
    with pytest.raises(ConfigError, match=r"is a peft adapter.*merge_and_unload"):
        cachekd.train(config("again", student=str(tmp_path / "out")))


def test_resuming_with_another_rank_is_refused(config: Make) -> None:
    once = {"max_steps": 1}
    cachekd.train(config(lora_r=2, training=once))
    resume = {"max_steps": 2, "resume_from_checkpoint": True}
    with pytest.raises(MismatchError, match="lora_r: 2 / 3"):
        cachekd.train(config(lora_r=3, training=resume))
    with pytest.raises(MismatchError, match="lora_r"):
        cachekd.train(config(training=resume))
