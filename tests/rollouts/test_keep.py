"""Kept rollouts: a cache like any other, of the student's text and the live teacher's rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ragged import assert_same
from runs import TRAINING, weights
from tiny import Family

import cachekd
from cachekd import TrainConfig
from cachekd.errors import ConfigError, MismatchError
from cachekd.rollouts.keep import keep, sample_of
from cachekd.rollouts.scoring import CachedScores
from cachekd.rollouts.teacher import LiveTeacher, find_teacher
from cachekd.store.verify import verify
from cachekd.types import Role, Sample

PROVENANCE = {"teacher": "tiny", "prompt_template": "chat", "add_eos": True, "clock": "2026-01-01"}


@pytest.fixture(scope="module")
def teacher(family: Family) -> LiveTeacher:
    config = TrainConfig(
        teacher=str(family.teacher),
        student=str(family.student),
        output_dir="none",
        data=("none",),
        logits_top_k=8,
    )
    return find_teacher(config, family.student, (2.0,)).load("cpu", 1)


def samples_of(count: int, vocab: int, seed: int = 0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        length, prompt = int(rng.integers(8, 40)), int(rng.integers(2, 7))
        roles = np.full(length, Role.ASSISTANT, np.uint8)
        roles[:prompt] = Role.USER
        samples.append(
            Sample(
                input_ids=rng.integers(0, vocab, length).astype(np.int32),
                roles=roles,
                prompt_length=prompt,
                domain=f"d{number % 2}",
                weight=1.0 + number % 3,
            )
        )
    return samples


def test_a_rollout_becomes_a_sample() -> None:
    prompt = np.uint8([Role.SYSTEM, Role.USER, Role.USER, Role.TEMPLATE])
    sample = sample_of(np.arange(6, dtype=np.int32), prompt, "law", 2.0, 7)
    assert sample.roles.tolist() == [*prompt, Role.ASSISTANT, Role.ASSISTANT]
    assert (sample.prompt_length, sample.domain, sample.weight, sample.row) == (4, "law", 2.0, 7)


def test_kept_rollouts_are_what_was_scored(
    family: Family, teacher: LiveTeacher, tmp_path: Path
) -> None:
    samples = samples_of(9, family.vocab)
    scores = CachedScores(teacher, tmp_path / "scores", 256)
    firsts = [sample.prompt_length - 1 for sample in samples if sample.prompt_length]
    scored = scores.score([sample.input_ids for sample in samples], firsts)
    before = scores.figures()["teacher_tokens"]
    report = keep(samples[:6], scores, teacher, str(tmp_path / "kept"), PROVENANCE)
    assert (report["samples"], report["new_samples"]) == (6, 6)
    report = keep(samples[4:], scores, teacher, str(tmp_path / "kept"), PROVENANCE)
    assert (report["samples"], report["new_samples"]) == (9, 3)
    again = keep(samples, scores, teacher, str(tmp_path / "kept"), PROVENANCE)
    assert again["new_samples"] == 0 and again["samples"] == 9
    assert scores.figures()["teacher_tokens"] == before, "all of it was in the score cache"
    cache = cachekd.open_cache(str(tmp_path / "kept"))
    for sample, targets in zip(samples, scored, strict=True):
        record = cache.get(sample.input_ids)
        assert record is not None
        assert_same(record.logits, targets)
        assert (record.domain, record.weight) == (sample.domain, sample.weight)
        assert record.prompt_length == sample.prompt_length
        assert record.roles.tolist() == sample.roles.tolist()
    assert verify(str(tmp_path / "kept")).problems == ()


def test_training_on_kept_rollouts_is_training_on_their_capture(
    family: Family, teacher: LiveTeacher, tmp_path: Path
) -> None:
    """The same rows captured by ``precompute`` from token ids give the same student."""
    samples = samples_of(8, family.vocab, seed=1)
    scores = CachedScores(teacher, tmp_path / "scores", 1)
    keep(samples, scores, teacher, str(tmp_path / "kept"), PROVENANCE)
    rows = [
        {
            "input_ids": sample.input_ids.tolist(),
            "labels": [-100] * (sample.prompt_length or 0)
            + sample.input_ids[sample.prompt_length :].tolist(),
            "weight": sample.weight,
        }
        for sample in samples
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "logits_selection": "top_k",
        "logits_top_k": 8,
        "logits_values": "float32",
        "rows": "response",
    }
    cachekd.precompute(
        cachekd.PrecomputeConfig(
            teacher=str(family.teacher),
            data=(str(tmp_path / "data.jsonl"),),
            cache=str(tmp_path / "captured"),
            columns={"weight": "weight"},
            threads=1,
            batch_tokens=1,
            **settings,
        )
    )
    left, right = (trained(family, tmp_path, name) for name in ("kept", "captured"))
    start = weights(family.student)
    assert max(float((left[name] - start[name]).abs().max()) for name in left) > 1e-3
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], atol=1e-5, rtol=0)


def trained(family: Family, folder: Path, cache: str) -> dict[str, torch.Tensor]:
    """A student trained on all samples at once: their order in a cache is that of their ids."""
    cachekd.train(
        TrainConfig(
            cache=(str(folder / cache),),
            student=str(family.student),
            output_dir=str(folder / f"{cache}-student"),
            training={**TRAINING, "max_steps": 5, "per_device_train_batch_size": 8},
        )
    )
    return weights(folder / f"{cache}-student")


def test_another_identity_is_refused(family: Family, teacher: LiveTeacher, tmp_path: Path) -> None:
    samples = samples_of(2, family.vocab)
    scores = CachedScores(teacher, tmp_path / "scores", 256)
    keep(samples, scores, teacher, str(tmp_path / "kept"), PROVENANCE)
    other = replace(teacher, selection=replace(teacher.selection, k=9))
    with pytest.raises(MismatchError, match=r"keep_rollouts: .*\n.*selection.k: 8 / 9"):
        keep(samples, scores, other, str(tmp_path / "kept"), PROVENANCE)


def test_equal_tokens_are_kept_once_for_the_shorter_prompt(
    family: Family, teacher: LiveTeacher, tmp_path: Path
) -> None:
    (sample,) = samples_of(1, family.vocab)
    shorter = replace(sample, prompt_length=1)
    scores = CachedScores(teacher, tmp_path / "scores", 256)
    report = keep([sample, shorter], scores, teacher, str(tmp_path / "kept"), PROVENANCE)
    assert (report["samples"], report["keys"]) == (2, 1)
    record = cachekd.open_cache(str(tmp_path / "kept"))[0]
    assert (np.diff(record.logits.offsets) == 8).all()


def test_what_is_no_rollout_is_refused(
    family: Family, teacher: LiveTeacher, tmp_path: Path
) -> None:
    scores = CachedScores(teacher, tmp_path / "scores", 256)
    bare = replace(samples_of(1, family.vocab)[0], prompt_length=None)
    for samples, message in (([], "no rollout"), ([bare], "found a prompt of None")):
        with pytest.raises(ConfigError, match=message):
            keep(samples, scores, teacher, str(tmp_path / "kept"), PROVENANCE)
    assert not (tmp_path / "kept").exists()
