"""Rows that a teacher gives no distribution of: named, or let go; never in a shard, nor trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sick import BAD_ROWS, Sickness, number, share
from tiny import Family, Ran, chat_rows, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.capture.attention import AttendingTeacher
from cachekd.capture.job import Job
from cachekd.capture.prepare import prepare_job
from cachekd.capture.unit import score_batch, score_unit
from cachekd.errors import CorruptCache, TeacherError
from cachekd.plugins import find
from cachekd.store.io import Location
from cachekd.store.state import read_state
from cachekd.store.verify import verify
from cachekd.teachers import Teacher
from cachekd.types import TopKLogits

SELECTIONS: dict[str, dict[str, Any]] = {
    "top_k": {"logits_selection": "top_k", "logits_top_k": 8},
    "top_p": {},
    "full": {"logits_selection": "full"},
    "sampled": {"logits_selection": "sampled"},
    "top_k+sampled": {"logits_selection": "top_k+sampled"},
    "levels": {"logits_values": "sqrt"},
    "response rows": {"rows": "response"},
}
BACKENDS = ("dummy", "hf")
EVERY = [
    pytest.param(kind, backend, marks=() if few else pytest.mark.reliability)
    for kind in SELECTIONS
    for backend in BACKENDS
    for few in [backend == "dummy" or kind == "top_p"]
]


def config(family: Family, data: Path, cache: Path, **further: Any) -> PrecomputeConfig:
    settings = {
        "threads": 1,
        "unit_tokens": 200,
        "batch_tokens": 100,
        "logits_values": "float32",
        "writers": 0,
    }
    return PrecomputeConfig(
        teacher=str(family.teacher), data=(str(data),), cache=str(cache), **{**settings, **further}
    )


def loaded(settings: PrecomputeConfig) -> tuple[Job, Teacher]:
    job = prepare_job(settings)
    teacher: Teacher = find("teachers", settings.backend).load(job.config, job.facts, 1)
    if job.attention is not None:
        teacher = AttendingTeacher(teacher, job.attention, job.attention_wanted)
    return job, teacher


def records(cache: Path) -> list[Any]:
    return list(cachekd.open_cache(str(cache)))


@pytest.mark.parametrize(("kind", "backend"), EVERY)
def test_a_bad_row_at_any_position_is_named(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, kind: str
) -> None:
    """Every position of a small document, every kind of bad row, every selection."""
    data = write_rows(tmp_path / "one.jsonl", chat_rows(1))
    settings = config(family, data, tmp_path / "c", backend=backend, **SELECTIONS[kind])
    job, teacher = loaded(settings)
    (batch,) = job.plan.units[0]
    (key,) = job.plan.unit_keys(0)
    length = len(job.documents[key])
    rows = np.arange(length - 1) if job.wanted is None else job.wanted[key].nonzero()[0]
    assert len(rows) > 5
    for place, row in enumerate(rows.tolist()):
        with monkeypatch.context() as patch:
            sickness = Sickness(number(place), list(BAD_ROWS)[place % len(BAD_ROWS)])
            sickness.install(patch)
            with pytest.raises(TeacherError, match="NaN or infinite logits in 1 of") as caught:
                score_batch(job, teacher, batch)
        assert sickness.made == 1
        assert f"one.jsonl row 0 at position {row} of {length} tokens" in str(caught.value)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(("kind", "backend"), EVERY)
def test_a_bad_row_is_let_go_and_changes_no_other(
    family: Family,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    kind: str,
) -> None:
    """About one row in fifty of thirty documents, of all four kinds."""
    settings = config(family, data, tmp_path / "c", backend=backend, **SELECTIONS[kind])
    settings = replace(settings, on_bad_targets="skip")
    job, teacher = loaded(settings)
    made = 0
    for unit in range(len(job.plan.units)):
        calm = score_unit(job, teacher, unit, stop_asked=lambda: False, scored=lambda _: None)
        with monkeypatch.context() as patch:
            sickness = Sickness(share(2), list(BAD_ROWS)[unit % len(BAD_ROWS)])
            sickness.install(patch)
            sick = score_unit(job, teacher, unit, stop_asked=lambda: False, scored=lambda _: None)
        made += sickness.made
        assert sum(map(len, sick.skipped.values())) == sickness.made
        for key, left, right in zip(calm.keys, calm.targets, sick.targets, strict=True):
            assert_equal_but(left, right, set(sick.skipped.get(key, ())))
    assert made > 5


def assert_equal_but(calm: TopKLogits, sick: TopKLogits, rows: set[int]) -> None:
    """Equal to the bit; these rows are empty, with scalars of 0."""
    gone = np.isin(np.arange(calm.rows), list(rows))
    kept = ~np.repeat(gone, np.diff(calm.offsets))
    assert (np.diff(sick.offsets) == np.where(gone, 0, np.diff(calm.offsets))).all()
    for name in ("ids", "logprobs", "weights"):
        left, right = getattr(calm, name), getattr(sick, name)
        assert (left is None and right is None) or left[kept].tobytes() == right.tobytes()
    scalars = [("tail", calm.tail, sick.tail), ("next", calm.next_logprob, sick.next_logprob)]
    scalars += [("entropy", calm.entropy, sick.entropy)]
    scalars += [(str(t), calm.lognorm[t], sick.lognorm[t]) for t in calm.lognorm]
    for name, left, right in scalars:
        assert np.where(gone, np.float32(0), left).tobytes() == right.tobytes(), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", ["first", "last"])
def test_fail_is_the_default_and_keeps_what_was_whole(
    cachekd: Callable[..., Ran],
    family: Family,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    batch: str,
) -> None:
    import cachekd as api

    calm, cache = tmp_path / "calm", tmp_path / "c"
    watch = Sickness(lambda *_: False)
    with monkeypatch.context() as patch:
        watch.install(patch)
        api.precompute(config(family, data, calm, backend=backend))
        rows = watch.seen
        Sickness(number(0 if batch == "first" else rows - 1)).install(patch)
        flags = ("--backend", backend, "--threads", 1, "--unit-tokens", 200, "--batch-tokens", 100)
        flags += ("--logits-values", "float32", "--writers", 0)
        common = ("--teacher", family.teacher, "--data", data, "--cache", cache)
        ran = cachekd("precompute", *common, *flags)
    assert ran.code == 1 and "data.jsonl row" in ran.err and "at position " in ran.err
    assert "--on-bad-targets skip" in ran.err and "Traceback" not in ran.err
    if batch == "first":
        assert not cache.exists()
        return
    assert not list(cache.glob("manifest*"))
    whole = {path.name for path in (calm / "logits").iterdir()}
    found = {path.name for path in (cache / "logits").glob("*.parquet")}
    assert found and len(found) == len(whole & found) == len(whole) - 2  # capture.json is in both
    assert not verify(str(cache), partial=True).problems
    api.precompute(config(family, data, cache, backend=backend))
    assert {path.name for path in (cache / "logits").iterdir()} == whole


@pytest.mark.parametrize("writers", [0, 1])
def test_what_is_let_go_is_recorded_and_told(
    cachekd: Callable[..., Ran],
    family: Family,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writers: int,
) -> None:
    import cachekd as api

    cache, calm = tmp_path / "c", tmp_path / "calm"
    settings = config(family, data, cache, backend="dummy", writers=writers)
    api.precompute(replace(settings, cache=str(calm)))
    monkeypatch.setattr("cachekd.capture._WORTH_A_PROCESS", 0)
    with monkeypatch.context() as patch:
        sickness = Sickness(share(1))
        sickness.install(patch)
        report = api.precompute(replace(settings, on_bad_targets="skip"))
    assert report["skipped_rows"] == sickness.made > 3
    assert cachekd("inspect", cache, "--json").json["skipped_rows"] == sickness.made
    units = read_state(Location(str(cache))).units.values()
    recorded = {key: rows for unit in units for key, rows in unit.skipped.items()}
    assert sum(map(len, recorded.values())) == sickness.made
    (manifest,) = cache.glob("manifest-*.json")
    sealed = json.loads(manifest.read_text())["skipped_rows"]
    assert {bytes.fromhex(k): tuple(v) for s in sealed.values() for k, v in s.items()} == recorded
    assert not verify(str(cache)).problems
    opened = api.open_cache(str(cache))
    assert opened.skipped == recorded
    for record, other in zip(records(cache), records(calm), strict=True):
        rows = recorded.get(record.key, ())
        assert_equal_but(other.logits, record.logits, set(rows))
        assert (() if record.skipped is None else tuple(record.skipped.nonzero()[0])) == rows
    again = api.precompute(replace(settings, on_bad_targets="skip"))
    assert again["documents_to_score"] == 0 and again["skipped_rows"] == sickness.made


def test_nothing_but_bad_rows_is_no_cache(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Sickness(lambda *_: True).install(monkeypatch)
    settings = config(family, data, tmp_path / "c", backend="dummy", on_bad_targets="skip")
    with pytest.raises(TeacherError, match="no distribution of any of the"):
        cachekd.precompute(settings)
    assert not (tmp_path / "c").exists()


def test_merge_and_recode_keep_the_record(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cachekd.store.merge import merge
    from cachekd.store.recode import recode

    cache = tmp_path / "c"
    settings = config(family, data, cache, backend="dummy", on_bad_targets="skip", rows="response")
    Sickness(share(3)).install(monkeypatch)
    cachekd.precompute(settings)
    skipped = cachekd.open_cache(str(cache)).skipped
    assert skipped
    merge([str(cache)], str(tmp_path / "merged"))
    recode([str(cache)], str(tmp_path / "recoded"))
    for name in ("merged", "recoded"):
        assert cachekd.open_cache(str(tmp_path / name)).skipped == skipped


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
    body = rows._body

    def short(*args: Any) -> Any:
        hidden_BTD, kind = body(*args)
        return hidden_BTD[:, 1:], kind

    monkeypatch.setattr(rows, "_body", short)
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
    with pytest.raises(CorruptCache, match="NaN or infinite|that its grid does not have"):
        opened[0]
    assert verify(str(tmp_path / "c")).problems
