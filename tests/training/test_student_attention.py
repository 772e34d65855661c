"""The tap on a student's attention against whole maps of the eager model, document by document."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from attending import (
    CAPTURED,
    COLLATE,
    COMMON,
    CONFIGS,
    HEADS,
    LAYERS,
    WINDOW,
    assert_same_gradients,
    expected_loss,
    gradients_of,
    inputs_of,
    mapping_of,
    model_of,
    records_of,
    tapped,
)
from fakes import VOCAB, record, student, with_attention
from transformers import AutoModelForCausalLM, BloomConfig, GptOssConfig

from cachekd.errors import MismatchError
from cachekd.training.attention import StudentAttention
from cachekd.training.collate import Collator


# OPT does not keep packed documents apart: `check_packing` refuses it.
@pytest.mark.parametrize(
    ("name", "packed"),
    [
        (name, packed)
        for name in CONFIGS
        for packed in (False, True)
        if (name, packed) != ("opt", 1)
    ],
)
def test_values_and_gradients_are_those_of_the_eager_path(name: str, packed: bool) -> None:
    window = WINDOW if name in ("mistral", "qwen2", "gemma2") else None
    records = records_of(window)
    model = model_of(name).eval()
    reference = model_of(name, "eager").eval()
    assert len(CAPTURED) < LAYERS and max(map(len, (r.input_ids for r in records))) > WINDOW
    batch = COLLATE([records[:2], records[2:]] if packed else records)
    tap = StudentAttention(model, mapping_of())
    found, expected = tapped(tap, model, batch), expected_loss(reference, records, window)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients_of(found, model), gradients_of(expected, reference), 1e-4)


def test_the_model_runs_and_is_saved_as_it_was(tmp_path: Any) -> None:
    batch = COLLATE(records_of(None))
    for attention in ("sdpa", "eager"):
        model = model_of("llama", attention).eval()
        plain = copy.deepcopy(model)
        tap = StudentAttention(model, mapping_of())
        with torch.no_grad(), tap.watching(batch):
            logits = model(**inputs_of(batch)).logits
        assert torch.equal(logits, plain(**inputs_of(batch)).logits)
        model.save_pretrained(tmp_path)
        assert "cachekd" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_checkpointing_gives_the_same_and_adds_nothing_twice(packed: bool) -> None:
    records = records_of(None)
    first, second = (COLLATE([part] if packed else part) for part in (records, records[:2]))
    model, plain = model_of("llama").train(), model_of("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    tap, other = (StudentAttention(m, mapping_of()) for m in (model, plain))
    runs: list[int] = []
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: runs.append(1))
    for batch in (first, second):
        found, expected = tapped(tap, model, batch), tapped(other, plain, batch)
        assert found.item() == pytest.approx(expected.item(), rel=1e-12)
        assert_same_gradients(gradients_of(found, model), gradients_of(expected, plain), 1e-9)
        assert tap.output().item() == found.item()
    assert len(runs) == 4  # once forward and once backward


def test_checkpointing_together_with_a_loss_on_logits() -> None:
    batch = COLLATE(records_of(None))
    found = []
    for checkpointing in (False, True):
        model = model_of("llama").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        tap = StudentAttention(model, mapping_of())
        with tap.watching(batch):
            logits = model(**inputs_of(batch)).logits
        found.append(gradients_of(logits.logsumexp(-1).sum() + 0.5 * tap.output(), model))
    assert_same_gradients(found[1], found[0], 1e-9)


def test_two_passes_before_a_backward_pass_are_refused_under_checkpointing() -> None:
    batch, model = COLLATE(records_of(None)), model_of("llama").train()
    tap = StudentAttention(model, mapping_of())
    (tapped(tap, model, batch) + tapped(tap, model, batch)).backward()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    both = tapped(tap, model, batch) + tapped(tap, model, batch)
    with pytest.raises(MismatchError, match="after each forward pass"):
        both.backward()


def test_reentrant_checkpointing_is_refused() -> None:
    model = model_of("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    tap = StudentAttention(model, mapping_of())
    with pytest.raises(MismatchError, match="use_reentrant"):
        tapped(tap, model, COLLATE(records_of(None)))


def test_autocast_takes_the_loss_in_float32() -> None:
    batch, model = COLLATE(records_of(None)), model_of("llama").float()
    tap = StudentAttention(model, mapping_of())
    exact = tapped(tap, model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = tapped(tap, model, batch)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=0.05)
    assert all(g.isfinite().all() for g in gradients_of(found, model).values())


def test_passes_that_nobody_watches_cost_and_change_nothing() -> None:
    batch, model = COLLATE(records_of(None)), model_of("llama").eval()
    tap = StudentAttention(model, mapping_of())
    found = tapped(tap, model, batch)
    model.generate(batch["input_ids"][:1, :3], max_new_tokens=3, do_sample=False)
    assert tap.output() is not None and tap.output().item() == found.item()
    with torch.no_grad():
        assert not tapped(tap, model, batch).requires_grad
    empty = COLLATE([with_attention(record([5, 6, 7]), layers=CAPTURED, heads=HEADS, rows=[])])
    assert tapped(tap, model, empty).item() == 0


def test_adapters_are_trained_through_it() -> None:
    peft = pytest.importorskip("peft")
    batch, model = COLLATE(records_of(None)), model_of("llama")
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "k_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, settings)
    tap = StudentAttention(adapted, mapping_of())
    merged = copy.deepcopy(adapted).merge_and_unload()
    found = tapped(tap, adapted, batch)
    merged.set_attn_implementation("eager")
    assert found.item() == pytest.approx(
        expected_loss(merged, records_of(None), None).item(), rel=1e-6
    )
    trained = gradients_of(found, adapted)
    assert trained and all("lora" in name for name in trained)


def test_a_student_in_distributed_data_parallel(tmp_path: Any) -> None:
    batch, model = COLLATE(records_of(None)), model_of("llama").train()
    expected = gradients_of(tapped(StudentAttention(model, mapping_of()), model, batch), model)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        tap = StudentAttention(wrapped, mapping_of())
        with tap.watching(batch):
            logits = wrapped(**inputs_of(batch)).logits
        found = gradients_of(0 * logits.sum() + tap.output(), model)
    finally:
        torch.distributed.destroy_process_group()
    assert_same_gradients(found, expected, 1e-9)


def test_a_student_of_another_shape() -> None:
    model = student().eval()
    mapping = mapping_of(layers=2, heads=2)
    assert [(pair.student, pair.place) for pair in mapping.layers] == [(1, 1)]
    loss = tapped(StudentAttention(model, mapping), model, COLLATE(records_of(None)))
    assert loss.item() > 0 and len(gradients_of(loss, model)) > 0


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=LAYERS, n_head=HEADS), "cannot be"),
        (
            GptOssConfig(**COMMON, head_dim=8, num_local_experts=2, num_experts_per_tok=1),
            "more than the softmax",
        ),
    ],
    ids=["alibi", "sinks"],
)
def test_models_with_more_in_their_maps_are_refused(config: Any, reason: str) -> None:
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with pytest.raises(MismatchError, match=reason):
        StudentAttention(model, mapping_of())


def test_wrong_mappings_and_batches_are_refused() -> None:
    model = model_of("llama")
    with pytest.raises(MismatchError, match=r"of 2 layers.*has 3"):
        StudentAttention(model, mapping_of(layers=2))
    with pytest.raises(MismatchError, match=r"has 4 heads.*says 2"):
        StudentAttention(model, mapping_of(heads=2))
    tap = StudentAttention(model, mapping_of())
    with (
        pytest.raises(MismatchError, match="attention=True"),
        tap.watching(Collator()(records_of(None))),
    ):
        pass
    batch = COLLATE(records_of(None))
    with tap.watching(batch):
        pass
    with pytest.raises(MismatchError, match="cannot be seen"):
        tap.output()
    with pytest.raises(MismatchError, match="twice"), tap.watching(batch):
        model(**inputs_of(batch))
        model(**inputs_of(batch))
    cached = model(batch["input_ids"][:, :2], use_cache=True).past_key_values
    with pytest.raises(MismatchError, match="use_cache=False"), tap.watching(batch):
        model(batch["input_ids"][:, 2:], past_key_values=cached)


def test_nothing_of_a_step_is_held_when_later_ones_have_run() -> None:
    model = model_of("llama")
    tap, held = StudentAttention(model, mapping_of()), []
    for _ in range(4):
        batch = Collator(attention=True)(records_of(None))
        held.append(weakref.ref(batch["attention"]["probs"]))
        tapped(tap, model, batch).backward()
    del batch
    gc.collect()
    assert [reference() is None for reference in held] == [True, True, True, False]


def test_means_over_samples_weigh_attention_as_they_weigh_targets() -> None:
    """Of one sample both reductions are the same mean; a batch is the mean of its samples."""
    model, records = model_of("llama"), records_of(None)
    tap = StudentAttention(model, mapping_of())

    def mean(items: Any, reduction: str) -> float:
        batch = Collator(attention=True, reduction=reduction)(items)
        return float(tapped(tap, model, batch).detach() / batch["targets"]["weights"].sum())

    alone = [mean([item], "seq_mean") for item in records]
    assert alone == pytest.approx([mean([item], "token_mean") for item in records], rel=1e-5)
    weights = [item.weight for item in records]
    expected = sum(w * m for w, m in zip(weights, alone, strict=True)) / sum(weights)
    assert mean(records, "seq_mean") == pytest.approx(expected, rel=1e-5)
