"""Attention of a real model, against what ``output_attentions`` of the eager model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Family, chat_rows, write_rows
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import cachekd
from cachekd import PrecomputeConfig
from cachekd.data.attention import attention_shape, attention_spec
from cachekd.errors import ConfigError, TeacherError
from cachekd.teachers import Selection
from cachekd.teachers import _attention as tap
from cachekd.teachers.hf import HFTeacher
from cachekd.types import AttentionRows

KEEP = Selection(k=4, p=1.0, min_k=1, vocab_size=300, temperatures=())


def settings(teacher: Path, **further: Any) -> PrecomputeConfig:
    base = {"attention": "maps", "attention_step": 1 / 255, "threads": 1}
    return PrecomputeConfig(
        teacher=str(teacher), data=("unused",), cache="unused", **{**base, **further}
    )


def load(config: PrecomputeConfig) -> HFTeacher:
    return HFTeacher.load(config, HFTeacher.identify(config), threads=1)


def reference(teacher: Path, ids: np.ndarray) -> np.ndarray:
    """Maps of all layers, [layers, heads, L-1, L-1]."""
    model = AutoModelForCausalLM.from_pretrained(teacher, attn_implementation="eager").eval()
    with torch.inference_mode():
        output = model(torch.from_numpy(ids.astype(np.int64))[None], output_attentions=True)
    return np.stack([layer[0].numpy() for layer in output.attentions])[:, :, :-1, :-1]


def documents() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(6, 300, length).astype(np.int32) for length in (30, 9, 2)]


def attended(config: PrecomputeConfig, rows: list[np.ndarray] | None = None) -> dict[Any, Any]:
    teacher = load(config)
    spec = attention_spec(config, attention_shape(HFTeacher.identify(config).config))
    found: dict[Any, Any] = {}
    texts = documents()
    masks = rows or [np.ones(len(ids) - 1, dtype=bool) for ids in texts]
    with teacher.attention(
        spec, masks, lambda b, place, arrays: found.update({(b, place): arrays})
    ):
        teacher.score(texts, 32, KEEP, [None] * len(texts))
    return found


def test_maps_are_those_of_the_eager_model(family: Family) -> None:
    found = attended(settings(family.teacher))
    assert len(found) == 6  # 3 documents x 2 layers
    for b, ids in enumerate(documents()):
        truth = reference(family.teacher, ids)
        for layer in (0, 1):
            assert found[b, layer][0] == pytest.approx(truth[layer], abs=1e-5)
    mean = attended(settings(family.teacher, attention_heads="mean", attention_layers=(1,)))
    assert mean[0, 0][0][0] == pytest.approx(
        reference(family.teacher, documents()[0])[1].mean(0), abs=1e-5
    )


def test_rows_and_heads_that_were_asked_for(family: Family) -> None:
    masks = [np.arange(len(ids) - 1) % 3 == 1 for ids in documents()]
    found = attended(settings(family.teacher, attention_heads="1"), masks)
    truth = reference(family.teacher, documents()[0])
    assert found[0, 1][0] == pytest.approx(truth[1][1:2][:, masks[0]], abs=1e-5)
    assert found[2, 0][0].shape == (1, 0, 1)


def test_queries_and_keys_give_the_same_maps(family: Family) -> None:
    found = attended(settings(family.teacher, attention="qk", attention_step=None))
    ids = documents()[0]
    truth = reference(family.teacher, ids)
    for layer in (0, 1):
        q, k = found[0, layer]
        assert (len(q), len(k)) == (2, 1)
        scores = np.einsum("hrd,ld->hrl", q, k[0])
        scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        assert weights == pytest.approx(truth[layer], abs=1e-5)


def test_logits_are_those_of_eager_attention(family: Family) -> None:
    def scored(config: PrecomputeConfig) -> list[np.ndarray]:
        found = load(config).score(documents(), 32, KEEP, [None] * 3)
        return [target.logprobs for target in found]

    with_attention = scored(settings(family.teacher))
    plain = scored(
        settings(family.teacher, attention="none", attention_step=None, attn_implementation="eager")
    )
    for left, right in zip(with_attention, plain, strict=True):
        assert (left == right).all()


def decoded(cache: Path, number: int) -> tuple[np.ndarray, AttentionRows]:
    record = cachekd.open_cache(str(cache))[number]
    assert record.attention is not None
    return record.input_ids, record.attention


@pytest.mark.parametrize("kind", ["maps", "qk"])
def test_the_whole_way_is_near_the_eager_model(family: Family, tmp_path: Path, kind: str) -> None:
    data = write_rows(tmp_path / "data.jsonl", chat_rows(6))
    cachekd.precompute(
        PrecomputeConfig(
            teacher=str(family.teacher),
            data=(str(data),),
            cache=str(tmp_path / "cache"),
            attention=kind,
            attention_step=1 / 255 if kind == "maps" else 0.005,
            threads=1,
        )
    )
    for number in range(6):
        ids, attention = decoded(tmp_path / "cache", number)
        truth = reference(family.teacher, ids).astype(np.float64)
        assert attention.layers.tolist() == [0, 1] and attention.heads.tolist() == [0, 1]
        for layer in (0, 1):
            read = attention.dense(layer).astype(np.float64)
            assert read.sum(-1) == pytest.approx(1, abs=1e-4)
            assert not read[:, np.triu(np.ones(read.shape[1:], bool), 1)].any()
            safe = np.where(truth[layer] > 0, truth[layer], 1)
            kl = (truth[layer] * np.log(safe / np.where(read > 0, read, 1))).sum(-1)
            assert kl.mean() < 1e-3
            assert (read > 0)[truth[layer] > 0].all()


def test_an_adapter_s_attention_is_captured(family: Family, adapter: Path) -> None:
    plain = attended(settings(family.teacher))
    adapted = attended(settings(family.teacher, adapter=str(adapter)))
    assert plain.keys() == adapted.keys()
    assert np.abs(plain[0, 0][0] - adapted[0, 0][0]).max() > 1e-4


def gpt2(folder: Path) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_another_architecture(tmp_path: Path) -> None:
    teacher = gpt2(tmp_path / "gpt2")
    (teacher / "tokenizer.json").write_text("{}")
    truth = reference(teacher, documents()[0])
    maps = attended(settings(teacher))
    assert maps[0, 1][0] == pytest.approx(truth[1], abs=1e-5)
    assert len(attended(settings(teacher, attention="qk", attention_step=None))) == 6


def test_a_kernel_without_maps_is_refused(family: Family) -> None:
    for kernel in ("sdpa", "flash_attention_2"):
        with pytest.raises(ConfigError, match="would store nothing"):
            settings(family.teacher, attn_implementation=kernel)


def test_a_layer_that_stays_silent_is_refused(family: Family) -> None:
    config = settings(family.teacher)
    teacher = load(config)
    teacher._model.set_attn_implementation("sdpa")
    spec = attention_spec(config, attention_shape(HFTeacher.identify(config).config))
    ids = documents()[0]
    with (
        pytest.raises(TeacherError, match=r"gives no attention maps.*layers 0, 1"),
        teacher.attention(spec, [np.ones(29, dtype=bool)], lambda *_: None),
    ):
        teacher.score([ids], 32, KEEP, [None])


def test_a_model_without_the_interface_is_refused() -> None:
    class Old(torch.nn.Module):
        config = type("Config", (), {"_attn_implementation": "eager"})()

        def set_attn_implementation(self, name: str) -> None:
            pass

    with pytest.raises(TeacherError, match="gives no attention maps"):
        tap.install(Old())


def test_attention_that_is_more_than_a_softmax_is_refused_for_qk(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tap._eager

    def windowed(module: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            output, maps = real(module)(*args, **kwargs)
            maps = torch.where(maps == maps.amax(-1, keepdim=True), 0.0, maps)
            return output, maps / maps.sum(-1, keepdim=True).clamp_min(1e-9)

        return forward

    monkeypatch.setattr(tap, "_eager", windowed)
    with pytest.raises(TeacherError, match=r"more than the softmax.*--attention maps"):
        attended(settings(family.teacher, attention="qk", attention_step=None))


def test_rows_without_mass_are_refused(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tap._eager

    def sink(module: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            output, maps = real(module)(*args, **kwargs)
            return output, maps * 0.5

        return forward

    monkeypatch.setattr(tap, "_eager", sink)
    with pytest.raises(TeacherError, match="does not sum to 1"):
        attended(settings(family.teacher))
