"""What is refused before a student is loaded, and what the refusal says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import VOCAB, FakeCache, record
from tiny import Family

from cachekd.config import AttentionConfig
from cachekd.data.alignment import LossMask
from cachekd.data.attention import AttentionShape, attention_spec
from cachekd.errors import ConfigError, MismatchError, TeacherError
from cachekd.objectives import Needs
from cachekd.store.tokenizer import tokenizer_facts
from cachekd.training import attention_checks, checks

RECORDS = [record([1, 2, 3])]
Copy = Callable[[Path, str], Path]


def _cache(family: Family, **changes: Any) -> Any:
    facts = tokenizer_facts(family.teacher)
    return FakeCache(
        RECORDS, name="main", **({"tokenizer": facts.digest, "vocab": facts.vocab_size} | changes)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("folder/cache", (None, "folder/cache")),
        ("expert=folder/cache", ("expert", "folder/cache")),
        ("expert=s3://bucket/a=b", ("expert", "s3://bucket/a=b")),
        ("folder/date=1/cache", (None, "folder/date=1/cache")),
        ("s3://bucket/date=1", (None, "s3://bucket/date=1")),
    ],
)
def test_names_of_caches(text: str, expected: tuple[str | None, str]) -> None:
    assert checks.parse_cache(text) == expected


def test_two_caches_of_one_name_are_refused(family: Family) -> None:
    with pytest.raises(ConfigError, match=r"'main'.*NAME=PATH"):
        checks.check_names([_cache(family), _cache(family)])


def test_matching_student_passes(family: Family) -> None:
    checks.check_student(family.student, [_cache(family)])


def test_other_tokenizer_names_both_sides(family: Family) -> None:
    with pytest.raises(MismatchError) as caught:
        checks.check_student(family.student, [_cache(family, tokenizer="0123456789abcdef0000")])
    text = str(caught.value)
    own = tokenizer_facts(family.student).digest[:16]
    assert all(part in text for part in (str(family.student), "'main'", own, "0123456789abcdef"))


def test_small_embedding_is_refused(family: Family, copy_of: Copy) -> None:
    folder = copy_of(family.student, "small")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 10}))
    with pytest.raises(MismatchError, match="embedding of 10 tokens"):
        checks.check_student(folder, [_cache(family)])


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_incomplete_student_is_refused(family: Family, copy_of: Copy, missing: str) -> None:
    folder = copy_of(family.student, "incomplete")
    (folder / missing).unlink()
    with pytest.raises(TeacherError, match=str(folder)):
        checks.check_student(folder, [_cache(family)])


def test_needs_that_were_not_captured_name_the_flag(family: Family) -> None:
    checks.check_needs(Needs(temperatures=(1.0, 2.0)), [_cache(family)])
    with pytest.raises(ConfigError, match=r"'main' lacks temperature 4.*--temperatures 4"):
        checks.check_needs(Needs(temperatures=(2.0, 4.0)), [_cache(family)])
    with pytest.raises(ConfigError, match="attention"):
        checks.check_needs(Needs(kinds=("attention",)), [_cache(family)])


def test_length_is_the_context_unless_less_is_asked(family: Family) -> None:
    assert checks.resolve_max_length(None, family.student) == 128
    assert checks.resolve_max_length(100, family.student) == 100
    with pytest.raises(ConfigError, match=r"at most 128.*found 129"):
        checks.resolve_max_length(129, family.student)


@pytest.mark.parametrize(
    "config", [{"n_positions": 64}, {"text_config": {"max_position_embeddings": 64}}, {}]
)
def test_context_is_found_where_models_keep_it(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert checks.resolve_max_length(None, tmp_path) == (64 if config else None)


def _attending(cache: Any, source_layers: int = 4, **changes: Any) -> Any:
    settings = AttentionConfig(attention="maps", attention_layers=(1, 3), attention_keys=8)
    shape = AttentionShape(layers=4, heads=4, key_heads=2, head_width=8)
    facts = attention_spec(settings, shape).to_json() | changes
    source = {
        **cache.identity.source,
        "config": {
            "num_hidden_layers": source_layers,
            "num_attention_heads": 4,
            "hidden_size": 32,
        },
    }
    cache.identity = replace(cache.identity, attention=facts, attention_id="id", source=source)
    return cache


def test_attention_is_mapped_onto_the_student(family: Family) -> None:
    cache = _attending(_cache(family))
    assert attention_checks.check_attention(Needs(), [_cache(family)], family.student) is None
    mapping = attention_checks.check_attention(Needs(attention=1.0), [cache], family.student)
    assert mapping is not None and (mapping.student.layers, mapping.student.heads) == (1, 2)
    assert [(pair.student, pair.place) for pair in mapping.layers] == [(0, 1)]
    assert mapping.heads.teacher == ((0, 1), (2, 3))
    coarser = _attending(_cache(family), keys=4, rows="response", share=0.5)
    attention_checks.check_attention(Needs(attention=1.0), [cache, coarser], family.student)


def test_attention_that_was_not_captured_names_the_flag(family: Family) -> None:
    caches = [_attending(_cache(family)), FakeCache(RECORDS, name="plain")]
    with pytest.raises(ConfigError, match=r"'plain' holds no attention.*--attention maps"):
        attention_checks.check_attention(Needs(attention=0.5), caches, family.student)


@pytest.mark.parametrize(
    ("difference", "named"),
    [
        ({"layers": [0, 3]}, "layers"),
        ({"heads": [0, 1]}, "heads"),
        ({"source_layers": 8}, "teacher_layers: 4 / 8"),
    ],
)
def test_captures_of_other_layers_or_heads_do_not_go_together(
    family: Family, difference: dict[str, Any], named: str
) -> None:
    caches = [_attending(_cache(family)), _attending(_cache(family), **difference)]
    with pytest.raises(MismatchError, match=f"(?s)attention.*{named}"):
        attention_checks.check_attention(Needs(attention=1.0), caches, family.student)


def test_students_that_cannot_learn_the_attention_are_refused(
    family: Family, copy_of: Copy
) -> None:
    needs, cache = Needs(attention=1.0), _attending(_cache(family), layers=[0, 1])
    with pytest.raises(MismatchError, match="--attention-layers"):
        attention_checks.check_attention(needs, [cache], family.student)
    some = _attending(_cache(family), heads=[0, 1])
    with pytest.raises(MismatchError, match="--attention-heads all or mean"):
        attention_checks.check_attention(needs, [some], family.student)
    responses = _attending(_cache(family), rows="response")
    with pytest.raises(MismatchError, match="--attention-rows all"):
        attention_checks.check_attention(needs, [responses], family.student, LossMask.ALL)
    unsaid = copy_of(family.student, "unsaid")
    (unsaid / "config.json").write_text("{}")
    with pytest.raises(MismatchError, match="does not state"):
        attention_checks.check_attention(needs, [_attending(_cache(family))], unsaid)


def test_checks_need_no_torch() -> None:
    code = (
        "import sys; import cachekd.training.run\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", ["sampled", "top_k+sampled"])
def test_sampled_entries_serve_only_what_is_linear(kind: str) -> None:
    drawn = FakeCache([record([5, 6, 7])], kind=kind)
    checks.check_needs(Needs(sampled=True), [drawn])
    with pytest.raises(ConfigError, match=r"forward KL at temperature 1.*top_p"):
        checks.check_needs(Needs(), [drawn])
    with pytest.raises(ConfigError, match="one selection"):
        checks.check_needs(Needs(sampled=True), [drawn, FakeCache([record([5, 6, 7])])])


def test_a_tail_model_needs_a_unigram() -> None:
    with pytest.raises(ConfigError, match="recode"):
        checks.check_needs(Needs(unigram=True), [FakeCache([record([5, 6, 7])])])
    checks.check_needs(Needs(unigram=True), [FakeCache([record([5, 6, 7])], unigram=np.ones(4))])


def test_text_of_the_teacher_must_be_there() -> None:
    cache = FakeCache([record([5, 6, 7])])
    with pytest.raises(ConfigError, match=r"1 samples of cache 'fake' it wrote none.*--generate"):
        checks.check_written(Needs(generated=True), [cache])
    checks.check_written(Needs(), [cache])
    cache.totals = {"samples": 1, "generated": 1}
    checks.check_written(Needs(generated=True), [cache])
    some = FakeCache([record([5, 6, 7]), record([8, 9])])
    some.totals = {"samples": 2, "generated": 1}
    with pytest.raises(ConfigError, match=r"2 samples of cache 'fake' it wrote 1"):
        checks.check_written(Needs(generated=True), [some])


def _selected(**selection: Any) -> Any:
    cache = FakeCache([record([5, 6, 7])], name="kept")
    cache.identity.capture["selection"].clear()
    cache.identity.capture["selection"].update(selection)
    return cache


def test_heads_must_hold_the_mass_that_is_asked_for() -> None:
    narrow = _selected(kind="top_p", k=64, p=0.9, min_k=1)
    checks.check_needs(Needs(mass=0.9), [narrow])
    with pytest.raises(ConfigError, match=r"'kept'.*--logits-top-p 0.9.*--logits-top-p 0.95"):
        checks.check_needs(Needs(mass=0.95), [narrow])
    checks.check_needs(Needs(mass=0.95), [_selected(kind="top_k", k=64)])
    with pytest.raises(ConfigError, match=r"top-p 0\.95 or more"):
        checks.check_needs(Needs(mass=0.95), [_selected(kind="top_k", k=64), narrow])


def test_whole_distributions_where_they_are_needed() -> None:
    checks.check_needs(Needs(full=True), [_selected(kind="top_k", k=VOCAB)])
    checks.check_needs(Needs(full=True), [_selected(kind="top_p", k=VOCAB, p=1.0, min_k=1)])
    for selection in ({"kind": "top_k", "k": VOCAB - 1}, {"kind": "top_p", "k": VOCAB, "p": 0.99}):
        with pytest.raises(ConfigError, match=r"whole distribution.*--logits-selection full"):
            checks.check_needs(Needs(full=True), [_selected(**selection)])
