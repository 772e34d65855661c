"""Loading the transformers teacher: what it is before, and what is refused with which words."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.errors import ConfigError, MismatchError, TeacherError
from cachekd.teachers.hf import HFTeacher

Copy = Callable[[Path, str], Path]
DOCUMENTS = [np.int32([9, 30, 41, 200, 17, 5]), np.int32([100, 7]), np.int32([50, 60, 70])]


def config(teacher: Path, **further: Any) -> PrecomputeConfig:
    settings = {"data": ("none",), "cache": "none", "threads": 1, "device": "cpu"}
    return PrecomputeConfig(teacher=str(teacher), **{**settings, **further})


def load(teacher: Path, **further: Any) -> HFTeacher:
    settings = config(teacher, **further)
    return HFTeacher.load(settings, HFTeacher.identify(settings), threads=1)


def edit(path: Path, **fields: Any) -> None:
    value = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


@pytest.mark.parametrize(
    ("said", "found"),
    [({}, "float32"), ({"dtype": "bfloat16"}, "bfloat16"),
     ({"dtype": None, "torch_dtype": "float16"}, "float16"),
     ({"dtype": None, "torch_dtype": "torch.bfloat16"}, "bfloat16"), ({"dtype": None}, "float32")],
)  # fmt: skip
def test_auto_takes_the_dtype_of_the_checkpoint(
    family: Family, copy_of: Copy, said: dict[str, Any], found: str
) -> None:
    folder = copy_of(family.teacher, "typed")
    edit(folder / "config.json", **said)
    assert HFTeacher.identify(config(folder)).dtype == found
    assert HFTeacher.identify(config(folder, dtype="float16")).dtype == "float16"
    assert load(folder)._model.dtype == getattr(torch, found)


def test_another_attention_than_asked_for_is_refused(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    for asked in ("sdpa", "eager"):
        model = load(family.teacher, attn_implementation=asked)._model
        assert model.config._attn_implementation == asked
    real = AutoModelForCausalLM.from_pretrained

    def stubborn(*args: Any, **kwargs: Any) -> Any:
        return real(*args, **{**kwargs, "attn_implementation": "eager"})

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", stubborn)
    with pytest.raises(TeacherError, match=r"expected sdpa attention; .* runs eager.*--attn-imp"):
        load(family.teacher)


def test_attention_that_is_not_installed_is_named(family: Family) -> None:
    if importlib.util.find_spec("flash_attn"):
        pytest.skip("flash_attn is installed here")
    with pytest.raises(TeacherError, match=r"cannot be loaded: .*[Ff]lash"):
        load(family.teacher, attn_implementation="flash_attention_2")


def test_a_cache_of_the_adapted_teacher_refuses_the_plain_one(
    family: Family, adapter: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "data.jsonl", chat_rows(3))
    settings = {"data": (str(data),), "cache": str(tmp_path / "cache")}
    cachekd.precompute(config(family.teacher, adapter=str(adapter), **settings))
    with pytest.raises(MismatchError, match=r"source\.adapter"):
        cachekd.precompute(config(family.teacher, **settings))


def test_what_is_no_adapter_is_named(family: Family) -> None:
    with pytest.raises(TeacherError, match="is not a peft adapter"):
        HFTeacher.identify(config(family.teacher, adapter=str(family.student)))


def test_a_context_that_nobody_states(family: Family, copy_of: Copy) -> None:
    folder = copy_of(family.teacher, "endless")
    edit(folder / "config.json", max_position_embeddings=None)
    with pytest.raises(TeacherError, match="set --max-length"):
        HFTeacher.identify(config(folder))
    assert HFTeacher.identify(config(folder, max_length=77)).context_length == 77


@pytest.mark.parametrize(
    ("option", "missing", "hint"),
    [({"load_in_4bit": True}, "bitsandbytes", r"cachekd\[bnb\]"),
     ({"load_in_8bit": True}, "bitsandbytes", r"cachekd\[bnb\]"),
     ({"device": None, "device_map": "auto"}, "accelerate", "accelerate"),
     ({"adapter": "ADAPTER"}, "peft", r"cachekd\[peft\]")],
)  # fmt: skip
def test_a_library_that_is_not_installed_is_named(
    family: Family, adapter: Path, monkeypatch: pytest.MonkeyPatch,
    option: dict[str, Any], missing: str, hint: str,
) -> None:  # fmt: skip
    real = importlib.util.find_spec

    def find(name: str, *args: Any) -> Any:
        return None if name == missing else real(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    option = {k: str(adapter) if v == "ADAPTER" else v for k, v in option.items()}
    with pytest.raises(
        ConfigError, match=rf"{missing} is not installed; run: pip install '{hint}'"
    ):
        HFTeacher.identify(config(family.teacher, **option))


def test_weights_that_a_checkpoint_lacks_are_not_made_up(family: Family, copy_of: Copy) -> None:
    folder = copy_of(family.teacher, "deeper")
    edit(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(
        TeacherError, match=r"9 weights are not in its checkpoint.*model\.layers\.2"
    ):
        load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_cannot_be_loaded(family: Family, copy_of: Copy, name: str) -> None:
    folder = copy_of(family.teacher, "broken")
    settings = config(folder, dtype="float32")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"\0" * 100)
    facts = HFTeacher.identify(settings)
    with pytest.raises(TeacherError, match="cannot be loaded"):
        HFTeacher.load(settings, facts, threads=1)
    (folder / name).unlink()
    with pytest.raises(TeacherError, match="holds no weights"):
        HFTeacher.identify(settings)
