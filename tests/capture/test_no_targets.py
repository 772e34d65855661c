"""What a teacher gives and is no target: refused before it is kept, and again when it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import BACKENDS, config, loaded, records
from tiny import Family

import cachekd
from cachekd.capture.unit import score_batch
from cachekd.errors import CorruptCache, TeacherError
from cachekd.plugins import find
from cachekd.store.verify import verify
from cachekd.teachers import Teacher
from cachekd.types import TopKLogits

Damage = Callable[[TopKLogits], TopKLogits]
NO_TARGETS: dict[str, tuple[str, Damage]] = {
    "a row too few": ("rows of targets", lambda t: rows_of(t, t.rows - 1)),
    "no rows": ("rows of targets", lambda t: rows_of(t, 0)),
    "another vocabulary": ("over", lambda t: replace(t, vocab_size=t.vocab_size + 1)),
    "ids beyond it": ("token ids in", lambda t: replace(t, ids=t.ids + t.vocab_size)),
    "ids below 0": ("token ids in", lambda t: replace(t, ids=-t.ids - 1)),
    "lost entries": ("that fit their rows", lambda t: replace(t, ids=t.ids[1:])),
    "lost scalars": ("that fit their rows", lambda t: replace(t, tail=t.tail[1:])),
    "no normaliser": ("log-normaliser", lambda t: replace(t, lognorm={})),
    "weights": ("weights", lambda t: replace(t, weights=np.zeros(len(t.ids), np.float32))),
}
NO_DISTRIBUTION: dict[str, Damage] = {
    "half the mass": lambda t: replace(t, logprobs=t.logprobs - 1, tail=t.tail - 1),
    "logits": lambda t: replace(t, logprobs=t.logprobs + 3),
    "a probability": lambda t: replace(t, logprobs=np.exp(t.logprobs)),
    "nan entropy": lambda t: replace(t, entropy=t.entropy * np.float32(np.nan)),
    "nan tail": lambda t: replace(t, tail=t.tail * np.float32(np.nan)),
    "nan next": lambda t: replace(t, next_logprob=t.next_logprob * np.float32(np.nan)),
    "-inf": lambda t: replace(t, logprobs=np.full_like(t.logprobs, -np.inf)),
    "infinite normaliser": lambda t: replace(
        t, lognorm={k: v + np.inf for k, v in t.lognorm.items()}
    ),
    "nothing": lambda t: rows_of(t, 0, t.rows),
}


def rows_of(target: TopKLogits, rows: int, empty: int = 0) -> TopKLogits:
    """The first rows, and then rows without entries."""
    end, scalars = int(target.offsets[rows]), rows + empty
    return replace(
        target,
        offsets=np.append(target.offsets[: rows + 1], np.full(empty, end)),
        ids=target.ids[:end],
        logprobs=target.logprobs[:end],
        tail=target.tail[:scalars],
        next_logprob=target.next_logprob[:scalars],
        entropy=target.entropy[:scalars],
        lognorm={t: values[:scalars] for t, values in target.lognorm.items()},
    )


class Damaged:
    """A teacher one of whose records is damaged on the way."""

    def __init__(self, teacher: Teacher, damage: Damage, which: int) -> None:
        self._teacher, self._damage, self._left = teacher, damage, which

    def score(self, documents: Any, *args: Any) -> list[TopKLogits]:
        found = self._teacher.score(documents, *args)
        if 0 <= self._left < len(found):
            found[self._left] = self._damage(found[self._left])
        self._left -= len(found)
        return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_targets_that_are_none_are_refused_whatever_the_policy(
    family: Family, data: Path, tmp_path: Path, backend: str
) -> None:
    """Of the first and of the last document of the run; a shape is no matter of a row."""
    settings = config(family, data, tmp_path / "c", backend=backend, on_bad_targets="skip")
    job, teacher = loaded(settings)
    batches = [batch for unit in job.plan.units for batch in unit]
    for words, damage in NO_TARGETS.values():
        for which in (0, 29):
            sick = Damaged(teacher, damage, which)
            with pytest.raises(TeacherError, match=words):
                for batch in batches:
                    score_batch(job, sick, batch)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("backend", BACKENDS)
def test_targets_that_are_no_distribution_follow_the_policy(
    family: Family, data: Path, tmp_path: Path, backend: str
) -> None:
    settings = config(family, data, tmp_path / "c", backend=backend)
    job, teacher = loaded(settings)
    job_skips = replace(job, config=replace(settings, on_bad_targets="skip"))
    batch = job.plan.units[-1][-1]
    for name, damage in NO_DISTRIBUTION.items():
        with pytest.raises(TeacherError, match=r"data.jsonl row \d+ at positions? 0"):
            score_batch(job, Damaged(teacher, damage, 0), batch)
        (first, *others), _ = score_batch(job_skips, Damaged(teacher, damage, 0), batch)
        assert len(first.ids) == 0 and not first.tail.any(), name
        assert not others or all((np.diff(other.offsets) > 0).all() for other in others)


def test_a_model_that_gives_too_few_rows_is_refused(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hidden state a document too few would shift the rows of all documents but the first."""
    job, teacher = loaded(config(family, data, tmp_path / "c"))
    rows = teacher._rows  # type: ignore[attr-defined]
    body = rows.body

    def short(*args: Any) -> Any:
        hidden_BTD, kind = body(*args)
        return hidden_BTD[:, 1:], kind

    monkeypatch.setattr(rows, "body", short)
    with pytest.raises(TeacherError, match="expected one row a token"):
        score_batch(job, teacher, job.plan.units[0][0])


def test_a_model_of_fewer_logits_than_tokens_is_refused(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, teacher = loaded(config(family, data, tmp_path / "c"))
    chunks = teacher._rows.chunks  # type: ignore[attr-defined]
    monkeypatch.setattr(
        teacher._rows,  # type: ignore[attr-defined]
        "chunks",
        lambda *args: (part_nV[:, :-1] for part_nV in chunks(*args)),
    )
    with pytest.raises(TeacherError, match="its tokenizer has"):
        score_batch(job, teacher, job.plan.units[0][0])


SCALARS = ("tail", "next_logprob", "entropy", "lognorm")
CODECS = [("packed", "float32"), ("packed", "float16"), ("plain", "float32"), ("plain", "float16")]


@pytest.mark.parametrize(("codec", "values"), CODECS)
@pytest.mark.parametrize("name", [*SCALARS, "logprobs"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_reader_refuses_what_is_no_number(
    family: Family,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    codec: str,
    values: str,
    name: str,
    value: float,
) -> None:
    """In a cache made by other means, whose digests are all right."""
    settings = config(family, data, tmp_path / "c", backend="dummy", codec=codec)
    settings = replace(settings, logits_values=values, unit_tokens=10**6)
    own = find("codecs", codec).encode

    def sick(self: Any, target: TopKLogits) -> Any:
        if name == "lognorm":
            changed = {t: array.copy() for t, array in target.lognorm.items()}
            changed[2.0][1] = value
            return own(self, replace(target, lognorm=changed))
        array = getattr(target, name).copy()
        array[1] = value
        return own(self, replace(target, **{name: array}))

    monkeypatch.setattr(find("codecs", codec), "encode", sick)
    with np.errstate(all="ignore"):
        cachekd.precompute(settings)
    if (codec, name, value) == ("packed", "logprobs", np.inf):
        # Its codes of values are finite numbers alone: no other one can be written.
        assert all(np.isfinite(record.logits.logprobs).all() for record in records(tmp_path / "c"))
        return
    opened = cachekd.open_cache(str(tmp_path / "c"))
    with pytest.raises(CorruptCache, match=r"NaN or infinite|that its grid does not have"):
        opened[0]
    assert verify(str(tmp_path / "c")).problems
