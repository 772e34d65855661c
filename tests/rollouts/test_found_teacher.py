"""The live teacher: who it is and what is kept is known before it is loaded, or it is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ragged import assert_same
from tiny import Family

from cachekd import TrainConfig
from cachekd.errors import MismatchError
from cachekd.rollouts import teacher as live
from cachekd.rollouts.scoring import CachedScores
from cachekd.rollouts.teacher import FoundTeacher, find_teacher
from cachekd.store.tokenizer import tokenizer_facts
from cachekd.teachers import RemoteConfig
from cachekd.teachers.hf import HFTeacher


def config(family: Family, **further: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "teacher": str(family.teacher),
        "student": str(family.student),
        "output_dir": "none",
        "data": ("none",),
    }
    return TrainConfig(**{**settings, **further})


def found(family: Family, temperatures: tuple[float, ...] = (), **further: Any) -> FoundTeacher:
    return find_teacher(config(family, **further), family.student, temperatures)


def test_it_is_known_without_its_weights(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(HFTeacher, "load", None)
        teacher = found(family, (2.0,), logits_top_k=7)
    assert teacher.source["tokenizer"] == tokenizer_facts(family.student).digest
    assert (teacher.selection.k, teacher.selection.p) == (7, 1.0)
    assert teacher.selection.temperatures == (2.0,)
    assert (teacher.context_length, teacher.remote) == (128, False)
    loaded = teacher.load("cpu", 1)
    assert loaded.scores_id == teacher.scores_id and loaded.source == teacher.source
    assert isinstance(loaded.teacher, HFTeacher) and loaded.model is loaded.teacher.model


def test_what_changes_the_numbers_changes_the_address_of_the_scores(family: Family) -> None:
    teachers = [
        found(family),
        found(family, (2.0,)),
        found(family, logits_top_k=8),
        found(family, logits_top_k=0),
        found(family, teacher_dtype="bfloat16"),
        found(family, teacher=str(family.student)),
    ]
    assert len({teacher.scores_id for teacher in teachers}) == 6
    assert len({replace(teachers[0], attention=name).scores_id for name in ("a", "b")}) == 2
    assert teachers[3].selection.k == family.vocab
    assert found(family, logits_top_k=10**6).scores_id == teachers[3].scores_id


def test_another_tokenizer_is_refused(family: Family, tmp_path: Path) -> None:
    teacher = Path(shutil.copytree(family.teacher, tmp_path / "teacher"))
    path = teacher / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["model"]["merges"] = raw["model"]["merges"][:-1]
    path.write_text(json.dumps(raw))
    own, other = tokenizer_facts(family.student).digest, tokenizer_facts(teacher).digest
    with pytest.raises(MismatchError, match=rf"student .*{own}.*live teacher .*{other}"):
        found(family, teacher=str(teacher))


def test_a_remote_teacher_is_reached_with_the_students_tokenizer(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def connect(settings: RemoteConfig) -> Any:
        asked.append(settings)
        return SimpleNamespace(
            source={"weights": "far away", "vocab_size": family.vocab},
            numerics={"attn_implementation": "sdpa"},
            context_length=99,
        )

    def find(kind: str, name: str) -> Any:
        asked.append((kind, name))
        return SimpleNamespace(connect=connect)

    monkeypatch.setattr(live, "find", find)
    teacher = found(family, teacher=None, teacher_url="http://there:1", teacher_token="secret")
    facts = tokenizer_facts(family.student)
    assert asked[0] == ("teachers", "served")
    assert (asked[1].url, asked[1].token) == ("http://there:1", "secret")
    assert (asked[1].tokenizer, asked[1].vocab_size) == (facts.digest, family.vocab)
    loaded = teacher.load(None, 1)
    assert loaded.remote and loaded.model is None and loaded.context_length == 99
    assert loaded.facts["attn_implementation"] == "sdpa"


def test_scores_of_a_model_are_the_models(family: Family, tmp_path: Path) -> None:
    teacher = found(family, (2.0,), logits_top_k=5).load("cpu", 1)
    rng = np.random.default_rng(0)
    docs = [rng.integers(0, family.vocab, n).astype(np.int32) for n in (40, 7, 23)]
    firsts = [3, 0, 20]
    given = [
        rng.integers(0, family.vocab, (len(d) - 1 - f, 4)).astype(np.int32)
        for d, f in zip(docs, firsts, strict=True)
    ]
    missed = CachedScores(teacher, tmp_path, 64)
    first = missed.score(docs, firsts, given)
    missed.flush()
    again = CachedScores(teacher, tmp_path, 4096)
    for left, right in zip(first, again.score(docs, firsts, given), strict=True):
        assert_same(left, right)
    assert again.figures()["teacher_tokens"] == 0
    for place, ids_L in enumerate(docs):
        wanted = [np.arange(len(ids_L) - 1) >= firsts[place]]
        (alone,) = teacher.teacher.score(
            [ids_L], len(ids_L), teacher.selection, wanted, [given[place]]
        )
        assert np.array_equal(alone.offsets, first[place].offsets)
        np.testing.assert_allclose(first[place].logprobs, alone.logprobs, atol=1e-4)
        np.testing.assert_allclose(first[place].tail, alone.tail, atol=1e-4)
