"""``cachekd verify --teacher``: sound caches pass, planted faults are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import Family, Ran, save_model

from cachekd.teachers.dummy import DummyTeacher
from cachekd.teachers.hf import HFTeacher
from cachekd.types import TopKLogits

Run = Callable[..., Ran]
KINDS = {
    "default": (),
    "sqrt": ("--logits-selection", "top_k", "--logits-values", "sqrt"),
    "log": ("--logits-values", "log", "--rows", "response"),
    "full": ("--logits-selection", "full", "--logits-values", "float32"),
    "head and draws": ("--logits-selection", "top_k+sampled", "--logits-tau", "0.05"),
    "draws": ("--logits-selection", "sampled", "--logits-samples", "20"),
}


@pytest.fixture
def captured(cachekd: Run, family: Family, data: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(*flags: object) -> Path:
        cache = tmp_path / "cache"
        base = ("--teacher", family.teacher, "--data", data, "--cache", cache)
        ran = cachekd("precompute", *base, *flags)
        assert ran.code == 0, ran.err
        return cache

    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["hf", "dummy"])
def test_a_sound_cache_passes(
    captured: Callable[..., Path], cachekd: Run, family: Family, kind: str, backend: str
) -> None:
    cache = captured("--backend", backend, *KINDS[kind])
    flags = ("--teacher", family.teacher, "--backend", backend, "--samples", 12)
    ran = cachekd("verify", cache, *flags, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["records_scored"] == 12 and ran.json["problems"] == []
    drawn = "draws" in kind
    assert drawn != ("kl_dense_to_stored" in ran.json), "draws have no KL of their own"
    assert drawn or ran.json["kl_dense_to_stored"] >= -1e-6
    assert set(ran.json["differences"]) == {
        "logprobs",
        "tail",
        "next_logprob",
        "entropy",
        "lognorm_2",
    }


def test_dense_targets_in_float32_have_no_kl(
    captured: Callable[..., Path], cachekd: Run, family: Family
) -> None:
    cache = captured(*KINDS["full"])
    ran = cachekd("verify", cache, "--teacher", family.teacher, "--json")
    assert abs(ran.json["kl_dense_to_stored"]) < 1e-6
    assert ran.json["records_scored"] == 30


@pytest.mark.parametrize("kind", KINDS)
def test_one_shifted_row_is_found(
    captured: Callable[..., Path],
    cachekd: Run,
    family: Family,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    true_score = HFTeacher.score
    planted = 0

    def score(self: HFTeacher, *args: Any) -> list[TopKLogits]:
        nonlocal planted
        records = true_score(self, *args)
        if not planted:
            records[0] = _with_the_next_row(records[0])
        planted += 1
        return records

    with monkeypatch.context() as patch:
        patch.setattr(HFTeacher, "score", score)
        cache = captured(*KINDS[kind])
    assert cachekd("verify", cache).code == 0, "files alone do not show it"
    ran = cachekd("verify", cache, "--teacher", family.teacher)
    assert ran.code == 4
    assert "next_logprob are not this teacher's" in ran.err


def _with_the_next_row(targets: TopKLogits) -> TopKLogits:
    """One captured row replaced by the captured row after it."""
    first, second = np.flatnonzero(np.diff(targets.offsets))[1:3]
    order = np.arange(targets.rows)
    order[first] = second
    spans = [np.arange(targets.offsets[row], targets.offsets[row + 1]) for row in order]
    at = np.concatenate(spans)
    return replace(
        targets,
        offsets=np.concatenate([[0], np.cumsum([len(span) for span in spans])]),
        ids=targets.ids[at],
        logprobs=targets.logprobs[at],
        weights=None if targets.weights is None else targets.weights[at],
        tail=targets.tail[order],
        next_logprob=targets.next_logprob[order],
        entropy=targets.entropy[order],
        lognorm={t: values[order] for t, values in targets.lognorm.items()},
    )


@pytest.mark.parametrize("kind", ["default", "sqrt", "log"])
def test_weights_that_are_not_what_they_are_said_to_be_are_found(
    captured: Callable[..., Path],
    cachekd: Run,
    family: Family,
    copy_of: Callable[[Path, str], Path],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    cache = captured(*KINDS[kind])
    other = copy_of(family.teacher, "other")
    save_model(other, family.vocab, width=32, layers=2, seed=77)
    load = HFTeacher.load
    monkeypatch.setattr(
        HFTeacher, "load", lambda c, facts, threads: load(c, replace(facts, folder=other), threads)
    )
    ran = cachekd("verify", cache, "--teacher", family.teacher, "--json")
    assert ran.code == 4
    assert len(ran.json["problems"]) >= 4
    assert ran.json["rows_with_other_entries"] > 0


def test_another_dtype_than_said_is_found(
    captured: Callable[..., Path], cachekd: Run, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = captured()
    load = HFTeacher.load
    monkeypatch.setattr(
        HFTeacher,
        "load",
        lambda c, facts, threads: load(c, replace(facts, dtype="bfloat16"), threads),
    )
    ran = cachekd("verify", cache, "--teacher", family.teacher)
    assert ran.code == 4
    assert "entropy are not this teacher's" in ran.err


def test_a_bfloat16_teacher_agrees_with_its_own_cache(
    captured: Callable[..., Path], cachekd: Run, family: Family
) -> None:
    cache = captured("--dtype", "bfloat16")
    flags = ("--teacher", family.teacher, "--samples", 10)
    assert cachekd("verify", cache, *flags, "--dtype", "bfloat16").code == 0
    ran = cachekd("verify", cache, *flags)
    assert ran.code == 5 and "dtype: 'bfloat16' / 'float32'" in ran.err


def test_another_teacher_is_refused_before_it_is_loaded(
    captured: Callable[..., Path],
    cachekd: Run,
    family: Family,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = captured()
    monkeypatch.setattr(HFTeacher, "load", lambda *args: pytest.fail("the model was loaded"))
    ran = cachekd("verify", cache, "--teacher", family.student)
    assert ran.code == 5
    assert str(cache) in ran.err and str(family.student) in ran.err and "weights" in ran.err
    ran = cachekd("verify", cache, "--teacher", family.teacher, "--attn-implementation", "eager")
    assert ran.code == 5 and "attn_implementation: 'sdpa' / 'eager'" in ran.err


def test_flags_of_a_teacher_need_one(
    captured: Callable[..., Path], cachekd: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = captured("--backend", "dummy")
    ran = cachekd("verify", cache, "--samples", 3)
    assert ran.code == 2 and "--teacher" in ran.err
    monkeypatch.setenv("CACHEKD_THREADS", "1")
    assert cachekd("verify", cache).code == 0


def test_a_damaged_cache_is_not_scored(
    captured: Callable[..., Path], cachekd: Run, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = captured("--backend", "dummy")
    (shard,) = (cache / "logits").glob("*.parquet")
    shard.write_bytes(shard.read_bytes()[:-1])
    monkeypatch.setattr(DummyTeacher, "load", lambda *args: pytest.fail("the model was loaded"))
    flags = ("--teacher", family.teacher, "--backend", "dummy")
    assert cachekd("verify", cache, *flags).code == 4
