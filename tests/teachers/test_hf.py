"""The transformers teacher: what it is before it is loaded, how it is loaded, what it gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Family, save_tokenizer

from cachekd import PrecomputeConfig
from cachekd.data.digests import json_id
from cachekd.errors import TeacherError
from cachekd.store.identity import source_facts
from cachekd.store.tokenizer import tokenizer_facts
from cachekd.teachers import Selection
from cachekd.teachers.hf import HFTeacher
from cachekd.types import TopKLogits

Copy = Callable[[Path, str], Path]
DOCUMENTS = [np.int32([9, 30, 41, 200, 17, 5]), np.int32([100, 7]), np.int32([50, 60, 70])]


def config(teacher: Path, **further: Any) -> PrecomputeConfig:
    settings = {"data": ("none",), "cache": "none", "threads": 1, "device": "cpu"}
    return PrecomputeConfig(teacher=str(teacher), **{**settings, **further})


def load(teacher: Path, **further: Any) -> HFTeacher:
    settings = config(teacher, **further)
    return HFTeacher.load(settings, HFTeacher.identify(settings), threads=1)


def whole(vocab: int) -> Selection:
    return Selection(k=vocab, p=1.0, min_k=1, vocab_size=vocab, temperatures=(2.0,))


def table(targets: TopKLogits) -> np.ndarray:
    """Dense log-probs of targets that hold the whole vocabulary."""
    dense = np.full((targets.rows, targets.vocab_size), np.nan)
    rows = np.repeat(np.arange(targets.rows), np.diff(targets.offsets))
    dense[rows, targets.ids] = targets.logprobs
    return dense


def reference(model: Any, ids: np.ndarray, vocab: int) -> np.ndarray:
    """Log-softmax of one document alone, in float64."""
    with torch.no_grad():
        logits = model.double().eval()(input_ids=torch.from_numpy(ids.astype(np.int64))[None])
    return np.asarray(torch.log_softmax(logits.logits[0, :-1, :vocab], dim=-1))


def edit(path: Path, **fields: Any) -> None:
    value = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def test_a_batch_gives_what_each_document_gives_alone(family: Family) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(family.teacher)
    scores = load(family.teacher).score(DOCUMENTS, 9, whole(family.vocab), [None] * 3)
    for ids, targets in zip(DOCUMENTS, scores, strict=True):
        dense = reference(model, ids, family.vocab)
        assert np.abs(table(targets) - dense).max() < 1e-4
        own = dense[np.arange(len(ids) - 1), ids[1:]]
        assert np.abs(own - targets.next_logprob).max() < 1e-4


def test_only_wanted_rows_are_scored(family: Family) -> None:
    teacher = load(family.teacher)
    wanted = [np.array([False, True, False, False, True]), np.array([False]), None]
    some = teacher.score(DOCUMENTS, 9, whole(family.vocab), wanted)
    every = teacher.score(DOCUMENTS, 9, whole(family.vocab), [None] * 3)
    assert [np.diff(t.offsets).tolist() for t in some] == [[0, 320, 0, 0, 320], [0], [320, 320]]
    assert some[0].entropy[[1, 4]].tobytes() == every[0].entropy[[1, 4]].tobytes()
    assert some[0].entropy[[0, 2, 3]].tolist() == [0, 0, 0]
    nothing = teacher.score(DOCUMENTS[1:2], 9, whole(family.vocab), [np.array([False])])
    assert nothing[0].offsets.tolist() == [0, 0]


def test_a_bfloat16_teacher(family: Family, copy_of: Copy) -> None:
    """Where the configuration is silent the stored tensors say it; logits are summed in float32."""
    from transformers import AutoModelForCausalLM

    folder = copy_of(family.teacher, "bf16")
    model = AutoModelForCausalLM.from_pretrained(family.teacher, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    edit(folder / "config.json", dtype=None)
    teacher = load(folder)
    assert teacher._model.dtype == torch.bfloat16
    (targets,) = teacher.score(DOCUMENTS[:1], 6, whole(family.vocab), [None])
    with torch.no_grad():
        ids = torch.from_numpy(DOCUMENTS[0].astype(np.int64))
        logits = teacher._model(input_ids=ids[None]).logits[0, :-1]
    assert logits.dtype == torch.bfloat16
    dense = torch.log_softmax(logits.double(), dim=-1).numpy()
    assert np.abs(table(targets) - dense).max() < 1e-4
    assert np.abs(np.exp(table(targets)).sum(axis=1) - 1).max() < 1e-5


def source(settings: PrecomputeConfig) -> str:
    facts = HFTeacher.identify(settings)
    return json_id(source_facts(settings, facts, tokenizer_facts(facts.tokenizer_folder)))


def test_an_adapter_is_another_teacher(family: Family, adapter: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain, adapted = config(family.teacher), config(family.teacher, adapter=str(adapter))
    assert source(plain) != source(adapted)
    edit(adapter / "adapter_config.json", base_model_name_or_path="elsewhere", peft_version="0")
    assert source(adapted) == source(config(family.teacher, adapter=str(adapter)))
    (base,) = load(family.teacher).score(DOCUMENTS[:1], 6, whole(family.vocab), [None])
    (targets,) = load(family.teacher, adapter=str(adapter)).score(
        DOCUMENTS[:1], 6, whole(family.vocab), [None]
    )
    assert np.abs(table(targets) - table(base)).max() > 0.01
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(family.teacher), adapter
    ).merge_and_unload()
    assert np.abs(table(targets) - reference(model, DOCUMENTS[0], family.vocab)).max() < 1e-3
    before = source(adapted)
    edit(adapter / "adapter_config.json", lora_alpha=99)
    assert source(adapted) != before


def test_a_gpt2_teacher(tmp_path: Path) -> None:
    """Learned positions, tied embeddings, and a context that is called n_positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    vocab = save_tokenizer(tmp_path)
    torch.manual_seed(0)
    settings = GPT2Config(
        vocab_size=384, n_positions=48, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(settings)
    model.save_pretrained(tmp_path)
    assert HFTeacher.identify(config(tmp_path)).context_length == 48
    scores = load(tmp_path).score(DOCUMENTS, 48, whole(vocab), [None] * 3)
    for ids, targets in zip(DOCUMENTS, scores, strict=True):
        assert targets.vocab_size == 320 and targets.ids.max() < 320
        assert np.abs(table(targets) - reference(model, ids, vocab)).max() < 1e-4


def test_a_tokenizer_with_more_tokens_than_logits(family: Family) -> None:
    with pytest.raises(TeacherError, match="gives 320 logits; its tokenizer has 321 tokens"):
        load(family.teacher).score(DOCUMENTS, 9, whole(321), [None] * 3)


def test_out_of_memory_has_one_name(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = load(family.teacher)
    errors = [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ]
    for error in errors:

        def fail(*args: Any, error: Exception = error, **kwargs: Any) -> None:
            raise error

        monkeypatch.setattr(teacher._rows, "_model", fail)
        with pytest.raises(MemoryError, match="memory"):
            teacher.score(DOCUMENTS, 9, whole(family.vocab), [None] * 3)


def test_threads_of_the_process_are_left_as_they_were(family: Family) -> None:
    before = torch.get_num_threads()
    settings = config(family.teacher)
    teacher = HFTeacher.load(settings, HFTeacher.identify(settings), before + 1)
    kept = Selection(k=4, p=1.0, min_k=1, vocab_size=family.vocab, temperatures=())
    inside: list[int] = []
    teacher._model.register_forward_pre_hook(lambda *a: inside.append(torch.get_num_threads()))
    teacher.score(DOCUMENTS, 8, kept, [None] * len(DOCUMENTS))
    assert set(inside) == {before + 1}
    assert torch.get_num_threads() == before
