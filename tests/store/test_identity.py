"""Who a teacher is: what changes an id, what does not, and what a user reads when two differ."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import Family, chat_rows, save_model, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.config import SelectionConfig
from cachekd.data.digests import differences, json_id
from cachekd.data.models import weights_digest
from cachekd.errors import MismatchError, TeacherError
from cachekd.store.identity import capture_id, capture_spec, refuse_difference, source_facts
from cachekd.store.identity_files import read_identity, write_identity
from cachekd.store.io import Location
from cachekd.store.layout import CACHE
from cachekd.store.tokenizer import tokenizer_facts
from cachekd.teachers.hf import HFTeacher


def config(teacher: Path, **further: Any) -> PrecomputeConfig:
    settings = {"data": ("none",), "cache": "none", "threads": 1}
    return PrecomputeConfig(teacher=str(teacher), **{**settings, **further})


def test_padding_of_the_embedding_does_not_count(
    family: Family, copy_of: Callable[[Path, str], Path], tmp_path: Path
) -> None:
    """320 or 384 rows of embedding on one tokenizer: one vocabulary, and targets over it alone."""
    import torch
    from transformers import AutoModelForCausalLM

    padded = copy_of(family.teacher, "padded")
    save_model(padded, 384, width=32, layers=1, seed=3)
    assert tokenizer_facts(padded) == tokenizer_facts(family.teacher)
    data = write_rows(tmp_path / "data.jsonl", chat_rows(4))
    kept = {"logits_top_k": 0, "logits_top_p": 1.0, "logits_values": "float32"}
    settings = {"data": (str(data),), "cache": str(tmp_path / "cache"), **kept}
    cachekd.precompute(config(padded, **settings))
    model = AutoModelForCausalLM.from_pretrained(padded).double().eval()
    assert model.get_input_embeddings().weight.shape[0] == 384
    for record in cachekd.open_cache(str(tmp_path / "cache")):
        with torch.no_grad():
            ids = torch.from_numpy(record.input_ids.astype(np.int64))
            logits = model(input_ids=ids[None]).logits[0, :-1, : family.vocab]
        dense = torch.log_softmax(logits, dim=-1).numpy()
        assert record.logits.vocab_size == family.vocab == 320
        assert (np.diff(record.logits.offsets) == 320).all() and record.logits.ids.max() < 320
        assert (record.logits.tail == -np.inf).all()
        rows = np.repeat(np.arange(len(dense)), 320)
        assert np.abs(dense[rows, record.logits.ids] - record.logits.logprobs).max() < 1e-4


def source_id(folder: Path, **further: Any) -> str:
    settings = config(folder, **further)
    facts = HFTeacher.identify(settings)
    return json_id(source_facts(settings, facts, tokenizer_facts(facts.tokenizer_folder)))


def test_the_source_id_is_of_contents_not_of_names(
    family: Family, copy_of: Callable[[Path, str], Path]
) -> None:
    folder = copy_of(family.teacher, "renamed")
    shard = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    (folder / "consolidated.safetensors").write_bytes(b"a second copy that is not loaded")
    assert weights_digest(folder) == weights_digest(family.teacher)
    assert source_id(folder) == source_id(family.teacher)
    assert weights_digest(family.student) != weights_digest(family.teacher)
    (folder / shard).unlink()
    with pytest.raises(TeacherError, match=f"names {shard}, which is missing"):
        weights_digest(folder)


def test_code_that_comes_with_a_model_is_part_of_the_source_when_it_is_run(
    family: Family, copy_of: Callable[[Path, str], Path]
) -> None:
    folder = copy_of(family.teacher, "own-code")
    (folder / "modeling.py").write_text("A = 1\n")

    def code(**settings: Any) -> str | None:
        config = PrecomputeConfig(teacher=str(folder), data=("x",), cache="c", **settings)
        return HFTeacher.identify(config).code

    assert code() is None
    first = code(trust_remote_code=True)
    (folder / "modeling.py").write_text("A = 2\n")
    assert first is not None and code(trust_remote_code=True) != first


def edit_config(folder: Path, key: str, value: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [("_name_or_path", "elsewhere"), ("transformers_version", "0.0"), ("use_cache", False),
     ("eos_token_id", 5), ("pad_token_id", None), ("vocab_size", 321), ("torch_dtype", "float32")],
)  # fmt: skip
def test_how_a_model_was_saved_is_not_who_it_is(
    family: Family, copy_of: Callable[[Path, str], Path], key: str, value: Any
) -> None:
    folder = copy_of(family.teacher, "edited")
    edit_config(folder, key, value)
    assert source_id(folder) == source_id(family.teacher)


@pytest.mark.parametrize(
    ("key", "value"),
    [("rms_norm_eps", 1e-3), ("hidden_act", "gelu"), ("num_attention_heads", 4),
     ("rope_parameters", {"rope_theta": 7.0, "rope_type": "default"}),
     ("quantization_config", {"bits": 4}), ("dtype", "bfloat16")],
)  # fmt: skip
def test_what_a_model_computes_is_who_it_is(
    family: Family, copy_of: Callable[[Path, str], Path], key: str, value: Any
) -> None:
    folder = copy_of(family.teacher, "edited")
    edit_config(folder, key, value)
    assert source_id(folder) != source_id(family.teacher)


def test_dtype_and_quantisation_are_part_of_the_source(family: Family) -> None:
    settings = config(family.teacher)
    facts = HFTeacher.identify(settings)
    tokenizer = tokenizer_facts(family.teacher)
    options = [{}, {"load_in_8bit": True}, {"load_in_4bit": True}]
    options += [{"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}]
    ids = {
        json_id(
            source_facts(config(family.teacher, **option), replace(facts, dtype=dtype), tokenizer)
        )
        for option in options
        for dtype in ("float32", "bfloat16")
    }
    assert len(ids) == 8


def test_the_capture_id_is_of_every_field_of_the_selection() -> None:
    options: list[dict[str, Any]] = [
        {}, {"logits_top_k": 8}, {"logits_top_p": 0.5}, {"logits_min_k": 2},
        {"temperatures": (1.0,)}, {"rows": "response"}, {"logits_values": "float32"},
    ]  # fmt: skip
    specs = [capture_spec(SelectionConfig(**option), "sdpa", 320) for option in options]
    specs.append(capture_spec(SelectionConfig(), "eager", 320))
    assert len({capture_id("s", spec) for spec in specs}) == len(specs)
    assert capture_id("s", specs[0]) != capture_id("other", specs[0])


def test_one_capture_said_in_two_ways_is_one_capture() -> None:
    same = [
        ({"logits_top_k": 0}, {"logits_top_k": 320}),
        ({"logits_top_k": 0}, {"logits_top_k": 9999}),
        ({"temperatures": (2.0,)}, {"temperatures": (2, 1.0, 2.0)}),
    ]
    for left, right in same:
        assert capture_spec(SelectionConfig(**left), "sdpa", 320) == capture_spec(
            SelectionConfig(**right), "sdpa", 320
        )


def test_a_refusal_names_door_sides_and_fields() -> None:
    left = {"source": {"dtype": "float32", "same": 1}, "only": 2}
    right = {"source": {"dtype": "bfloat16", "same": 1}}
    assert differences(left, right) == [
        "only: 2 / None",
        "source.dtype: 'float32' / 'bfloat16'",
    ]
    refuse_difference("merge", left, copy.deepcopy(left), "A", "B")
    with pytest.raises(MismatchError) as caught:
        refuse_difference("merge", left, right, "A", "B")
    message = str(caught.value)
    assert message.startswith("merge: A and B do not belong together")
    assert "source.dtype: 'float32' / 'bfloat16'" in message and "same" not in message


def test_another_tokenizer_on_one_cache_is_refused(
    make_cache: Callable[..., dict[str, Any]], family: Family, cache: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(family.teacher, tmp_path / "other"))
    raw = json.loads((other / "tokenizer.json").read_text())
    raw["model"]["merges"].reverse()
    (other / "tokenizer.json").write_text(json.dumps(raw))
    before = sorted(path.name for path in cache.rglob("*"))
    with pytest.raises(MismatchError, match=r"source\.tokenizer: "):
        make_cache(cache, chat_rows(12), tokenizer=str(other))
    assert sorted(path.name for path in cache.rglob("*")) == before


def test_of_two_teachers_that_begin_where_no_locks_are_one_has_the_place(
    sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other comes between the first one's two files: it must not put its own beside them."""
    own, place = read_identity(Location(str(sealed))), Location(f"memory://{tmp_path}/cache")
    source = {**own.source, "weights": "0" * 64}
    other = replace(own, source=source, source_id=json_id(source), capture_id="1" * 32)
    create, refusals = Location.create, []

    def interrupted(self: Location, name: str, data: bytes) -> bool:
        made = create(self, name, data)
        if name == CACHE and made:
            with pytest.raises(MismatchError, match=rf"weights: .* / '{'0' * 64}'") as caught:
                write_identity(place, other)
            refusals.append(caught.value)
        return made

    monkeypatch.setattr(Location, "create", interrupted)
    write_identity(place, own)
    assert len(refusals) == 1 and read_identity(place) == own
