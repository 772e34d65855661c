"""The tap on a student's attention against whole maps of the eager model, document by document."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from fakes import VOCAB, attention_maps, record, student, with_attention
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from cachekd.data.attention import AttentionShape
from cachekd.errors import MismatchError
from cachekd.losses.attention import AttentionMapping, map_heads, map_layers
from cachekd.losses.reference import dense_attention_kl
from cachekd.training.attention import StudentAttention
from cachekd.training.collate import Collator
from cachekd.types import Batch, Record

LAYERS, HEADS, WINDOW = 3, 4, 5
CAPTURED = (0, 2)
COLLATE = Collator(attention=True)
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
OLDER = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**COMMON),
    "qwen2": lambda: Qwen2Config(
        **COMMON, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**COMMON, head_dim=12),
    "mistral": lambda: MistralConfig(**COMMON, sliding_window=WINDOW),
    "gpt2": lambda: GPT2Config(
        **OLDER,
        n_embd=32,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=64,
        initializer_range=0.3,
        scale_attn_by_inverse_layer_idx=True,
    ),
    "opt": lambda: OPTConfig(
        **OLDER,
        hidden_size=32,
        ffn_dim=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        init_std=0.3,
    ),
    "gemma2": lambda: Gemma2Config(
        **COMMON, head_dim=8, sliding_window=WINDOW, attn_logit_softcapping=2.0
    ),
}


def _model(name: str, attention: str = "sdpa", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = CONFIGS[name]()
    if name == "gemma2":
        # Soft caps are in no other attention of a CPU, and its masks overflow in float64.
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).double()


def _mapping(layers: int = LAYERS, heads: int = HEADS) -> AttentionMapping:
    return AttentionMapping(
        student=AttentionShape(layers=layers, heads=heads, key_heads=2, head_width=8),
        layers=map_layers(layers, LAYERS, CAPTURED),
        heads=map_heads(heads, HEADS, range(HEADS)),
    )


def _records(window: int | None) -> list[Record]:
    """Documents of several lengths: whole, with some rows, with the best keys."""
    choices: list[dict[str, Any]] = [{}, {"rows": [1, 4, 9], "weight": 3.0}, {"most": 4}]
    lengths = (9, 14, 12)
    return [
        with_attention(
            record([(3 * n + 7 * i) % VOCAB for i in range(length)], weight=1.0 + n),
            layers=CAPTURED,
            heads=HEADS,
            window=window,
            **further,
        )
        for n, (length, further) in enumerate(zip(lengths, choices, strict=True))
    ]


def _inputs(batch: Batch) -> dict[str, Any]:
    packed = batch["attention_mask"] is None
    name = "position_ids" if packed else "attention_mask"
    return {"input_ids": batch["input_ids"], name: batch[name], "use_cache": False}


def _tapped(tap: StudentAttention, model: Any, batch: Batch) -> Tensor:
    with tap.watching(batch):
        model(**_inputs(batch))
    return tap.output()


def _expected(model: Any, records: Sequence[Record], window: int | None) -> Tensor:
    """The sum over documents that run alone with eager attention, from whole maps."""
    total = torch.zeros((), dtype=torch.float64)
    for item in records:
        attention = item.attention
        assert attention is not None
        length = attention.length
        ids = torch.from_numpy(item.input_ids).long()[None]
        maps = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
        weights = torch.zeros(length, dtype=torch.float64)
        weights[attention.rows] = torch.from_numpy(attention.weights).double() * item.weight
        for place, layer in enumerate(CAPTURED):
            teacher = attention_maps(length, HEADS, len(CAPTURED), window)[place]
            kept = torch.ones_like(teacher, dtype=torch.bool)
            kept[:, attention.rows] = torch.from_numpy(_kept(attention, place))
            found = maps[layer][0, :, :length, :length]
            total = total + dense_attention_kl(teacher, found, weights, kept)
    return total / len(CAPTURED)


def _kept(attention: Any, place: int) -> Any:
    import numpy as np

    maps = len(attention.heads) * len(attention.rows)
    offsets = attention.offsets[place * maps : (place + 1) * maps + 1]
    kept = np.zeros((maps, attention.length), bool)
    keys = attention.keys[offsets[0] : offsets[-1]]
    kept[np.repeat(np.arange(maps), np.diff(offsets)), keys] = True
    return kept.reshape(len(attention.heads), len(attention.rows), -1)


def _gradients(loss: Tensor, model: Any) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _assert_same(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float) -> None:
    """A parameter without a gradient in one has none or 0 in the other."""
    largest, zero = max(value.abs().max().item() for value in right.values()), torch.zeros(())
    assert largest > 1e-3
    for name in {*left, *right}:
        mine, theirs = left.get(name, zero), right.get(name, zero)
        scale = max(theirs.abs().max().item(), largest / 100)
        assert (mine - theirs).abs().max() <= tolerance * scale, name


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
    records = _records(window)
    model = _model(name).eval()
    reference = _model(name, "eager").eval()
    assert len(CAPTURED) < LAYERS and max(map(len, (r.input_ids for r in records))) > WINDOW
    batch = COLLATE([records[:2], records[2:]] if packed else records)
    tap = StudentAttention(model, _mapping())
    found, expected = _tapped(tap, model, batch), _expected(reference, records, window)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    _assert_same(_gradients(found, model), _gradients(expected, reference), 1e-4)


def test_the_model_runs_and_is_saved_as_it_was(tmp_path: Any) -> None:
    batch = COLLATE(_records(None))
    for attention in ("sdpa", "eager"):
        model = _model("llama", attention).eval()
        plain = copy.deepcopy(model)
        tap = StudentAttention(model, _mapping())
        with torch.no_grad(), tap.watching(batch):
            logits = model(**_inputs(batch)).logits
        assert torch.equal(logits, plain(**_inputs(batch)).logits)
        model.save_pretrained(tmp_path)
        assert "cachekd" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_checkpointing_gives_the_same_and_adds_nothing_twice(packed: bool) -> None:
    records = _records(None)
    first, second = (COLLATE([part] if packed else part) for part in (records, records[:2]))
    model, plain = _model("llama").train(), _model("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    tap, other = (StudentAttention(m, _mapping()) for m in (model, plain))
    runs: list[int] = []
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: runs.append(1))
    for batch in (first, second):
        found, expected = _tapped(tap, model, batch), _tapped(other, plain, batch)
        assert found.item() == pytest.approx(expected.item(), rel=1e-12)
        _assert_same(_gradients(found, model), _gradients(expected, plain), 1e-9)
        assert tap.output().item() == found.item()
    assert len(runs) == 4  # once forward and once backward


def test_checkpointing_together_with_a_loss_on_logits() -> None:
    batch = COLLATE(_records(None))
    found = []
    for checkpointing in (False, True):
        model = _model("llama").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        tap = StudentAttention(model, _mapping())
        with tap.watching(batch):
            logits = model(**_inputs(batch)).logits
        found.append(_gradients(logits.logsumexp(-1).sum() + 0.5 * tap.output(), model))
    _assert_same(found[1], found[0], 1e-9)


def test_two_passes_before_a_backward_pass_are_refused_under_checkpointing() -> None:
    batch, model = COLLATE(_records(None)), _model("llama").train()
    tap = StudentAttention(model, _mapping())
    (_tapped(tap, model, batch) + _tapped(tap, model, batch)).backward()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    both = _tapped(tap, model, batch) + _tapped(tap, model, batch)
    with pytest.raises(MismatchError, match="after each forward pass"):
        both.backward()


def test_reentrant_checkpointing_is_refused() -> None:
    model = _model("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    tap = StudentAttention(model, _mapping())
    with pytest.raises(MismatchError, match="use_reentrant"):
        _tapped(tap, model, COLLATE(_records(None)))


def test_autocast_takes_the_loss_in_float32() -> None:
    batch, model = COLLATE(_records(None)), _model("llama").float()
    tap = StudentAttention(model, _mapping())
    exact = _tapped(tap, model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = _tapped(tap, model, batch)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=0.05)
    assert all(g.isfinite().all() for g in _gradients(found, model).values())


def test_passes_that_nobody_watches_cost_and_change_nothing() -> None:
    batch, model = COLLATE(_records(None)), _model("llama").eval()
    tap = StudentAttention(model, _mapping())
    found = _tapped(tap, model, batch)
    model.generate(batch["input_ids"][:1, :3], max_new_tokens=3, do_sample=False)
    assert tap.output() is not None and tap.output().item() == found.item()
    with torch.no_grad():
        assert not _tapped(tap, model, batch).requires_grad
    empty = COLLATE([with_attention(record([5, 6, 7]), layers=CAPTURED, heads=HEADS, rows=[])])
    assert _tapped(tap, model, empty).item() == 0


def test_adapters_are_trained_through_it() -> None:
    peft = pytest.importorskip("peft")
    batch, model = COLLATE(_records(None)), _model("llama")
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "k_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, settings)
    tap = StudentAttention(adapted, _mapping())
    merged = copy.deepcopy(adapted).merge_and_unload()
    found = _tapped(tap, adapted, batch)
    merged.set_attn_implementation("eager")
    assert found.item() == pytest.approx(_expected(merged, _records(None), None).item(), rel=1e-6)
    trained = _gradients(found, adapted)
    assert trained and all("lora" in name for name in trained)


def test_a_student_in_distributed_data_parallel(tmp_path: Any) -> None:
    batch, model = COLLATE(_records(None)), _model("llama").train()
    expected = _gradients(_tapped(StudentAttention(model, _mapping()), model, batch), model)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        tap = StudentAttention(wrapped, _mapping())
        with tap.watching(batch):
            logits = wrapped(**_inputs(batch)).logits
        found = _gradients(0 * logits.sum() + tap.output(), model)
    finally:
        torch.distributed.destroy_process_group()
    _assert_same(found, expected, 1e-9)


def test_a_student_of_another_shape() -> None:
    model = student().eval()
    mapping = _mapping(layers=2, heads=2)
    assert [(pair.student, pair.place) for pair in mapping.layers] == [(1, 1)]
    loss = _tapped(StudentAttention(model, mapping), model, COLLATE(_records(None)))
    assert loss.item() > 0 and len(_gradients(loss, model)) > 0


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
        StudentAttention(model, _mapping())


def test_wrong_mappings_and_batches_are_refused() -> None:
    model = _model("llama")
    with pytest.raises(MismatchError, match=r"of 2 layers.*has 3"):
        StudentAttention(model, _mapping(layers=2))
    with pytest.raises(MismatchError, match=r"has 4 heads.*says 2"):
        StudentAttention(model, _mapping(heads=2))
    tap = StudentAttention(model, _mapping())
    with (
        pytest.raises(MismatchError, match="attention=True"),
        tap.watching(Collator()(_records(None))),
    ):
        pass
    batch = COLLATE(_records(None))
    with tap.watching(batch):
        pass
    with pytest.raises(MismatchError, match="cannot be seen"):
        tap.output()
    with pytest.raises(MismatchError, match="twice"), tap.watching(batch):
        model(**_inputs(batch))
        model(**_inputs(batch))
    cached = model(batch["input_ids"][:, :2], use_cache=True).past_key_values
    with pytest.raises(MismatchError, match="use_cache=False"), tap.watching(batch):
        model(batch["input_ids"][:, 2:], past_key_values=cached)
