"""Rows that a teacher gives no distribution of: named, or let go; never in a shard, nor trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import BACKENDS, config, loaded, records
from sick import BAD_ROWS, Sickness, number, share
from tiny import Family, Ran, chat_rows, write_rows

import cachekd
from cachekd.capture.unit import score_batch, score_unit
from cachekd.errors import TeacherError
from cachekd.store.io import Location
from cachekd.store.state import read_state
from cachekd.store.verify import verify
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
EVERY = [
    pytest.param(kind, backend, marks=() if few else pytest.mark.reliability)
    for kind in SELECTIONS
    for backend in BACKENDS
    for few in [backend == "dummy" or kind == "top_p"]
]


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
    monkeypatch.setattr("cachekd.capture.worker._WORTH_A_PROCESS", 0)
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
