"""Runs: dry, interrupted, out of time, out of memory; what they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import Family, Ran, chat_rows, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.capture.job import Job
from cachekd.codecs import CodecHeader
from cachekd.codecs._learn import learn_prior
from cachekd.codecs._priors import Prior
from cachekd.errors import ConfigError, Incomplete, StoreError, TeacherError
from cachekd.store.io import Location
from cachekd.store.state import read_state
from cachekd.store.verify import verify
from cachekd.teachers import Teacher
from cachekd.teachers.hf import HFTeacher
from cachekd.types import TopKLogits


def config(family: Family, data: Path, cache: Path, **further: object) -> PrecomputeConfig:
    settings = {"threads": 1, "unit_tokens": 200, "batch_tokens": 100}
    return PrecomputeConfig(
        teacher=str(family.teacher), data=(str(data),), cache=str(cache), **{**settings, **further}
    )


def shards(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "logits").glob("*.parquet"))


def test_dry_run_counts_and_writes_nothing(family: Family, data: Path, tmp_path: Path) -> None:
    report = cachekd.precompute(config(family, data, tmp_path / "cache", dry_run=True))
    assert not (tmp_path / "cache").exists()
    assert report["samples"] == 30 and report["documents_cached"] == 0
    done = cachekd.precompute(config(family, data, tmp_path / "cache"))
    assert done["shards"] == report["shards_to_write"] > 1
    assert done["bytes"] > 0
    assert done["sample_tokens"] == report["tokens"]
    again = cachekd.precompute(config(family, data, tmp_path / "cache", dry_run=True))
    assert again["documents_cached"] == 30 and again["bytes_at_most"] == 0


def test_the_bound_of_the_dry_run_holds(family: Family, data: Path, tmp_path: Path) -> None:
    kept = {"logits_top_p": 1.0, "logits_values": "float32", "unit_tokens": 10**6}
    report = cachekd.precompute(config(family, data, tmp_path / "cache", **kept))
    payload = report["bytes"] - 16_000  # Parquet's own headers and footer
    assert payload < report["bytes_at_most"]


def test_max_hours_ends_in_good_order(family: Family, data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(Incomplete, match="0 of"):
        cachekd.precompute(config(family, data, cache, max_hours=1e-9))
    assert not list(cache.glob("manifest*")) and not shards(cache)
    report = cachekd.precompute(config(family, data, cache))
    assert report["sealed"] and report["samples"] == 30


@pytest.mark.parametrize("kind", ["sampled", "top_k+sampled"])
def test_weights_are_not_lost_in_a_codec_without_them(
    family: Family, data: Path, tmp_path: Path, kind: str
) -> None:
    with pytest.raises(ConfigError, match="the plain codec holds exact heads"):
        further = {"logits_selection": kind, "codec": "plain"}
        cachekd.precompute(config(family, data, tmp_path / "cache", **further))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_cleanly_and_the_same_command_continues(
    family: Family, data: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes near the end; what follows ends in the bytes of a quiet run."""
    calm, cache = tmp_path / "calm", tmp_path / "cache"
    score, calls = HFTeacher.score, []
    last = 0

    def interrupted(self: HFTeacher, *args: object) -> object:
        calls.append(1)
        if len(calls) == last:
            os.kill(os.getpid(), number)
        return score(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(HFTeacher, "score", interrupted)
    cachekd.precompute(config(family, data, calm))
    last = 2 * len(calls) - 3
    with pytest.raises(Incomplete, match="by a signal"):
        cachekd.precompute(config(family, data, cache))
    monkeypatch.undo()
    begun = shards(cache)
    assert 0 < len(begun) < len(shards(calm))
    assert not [path for path in cache.rglob("*") if path.name.startswith(".")]
    cachekd.precompute(config(family, data, cache))
    assert shards(cache) == shards(calm)


@pytest.mark.slow
def test_sigterm_to_a_real_process_gives_exit_code_3(family: Family, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", chat_rows(3000))
    cache = tmp_path / "cache"
    command = [sys.executable, "-m", "cachekd_cli", "precompute", "--teacher", family.teacher]
    command += ["--data", data, "--cache", cache, "--unit-tokens", "500", "--threads", "1"]
    command += ["--on-long", "skip"]
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list((cache / "units").glob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert "Run the same command again to continue" in err


def test_out_of_memory_is_tried_again_and_then_split(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never more than two documents fit: the records are those of a calm run, and say so."""
    from cachekd.store.io import Location

    precise = {"logits_values": "float32"}
    cachekd.precompute(config(family, data, tmp_path / "calm", **precise))
    score, refused = HFTeacher.score, []

    def small(self: HFTeacher, documents, *args):  # type: ignore[no-untyped-def]
        if len(documents) > 2:
            refused.append(len(documents))
            raise MemoryError("injected")
        return score(self, documents, *args)

    monkeypatch.setattr(HFTeacher, "score", small)
    cachekd.precompute(config(family, data, tmp_path / "tight", **precise))
    assert refused and refused[0] == refused[1], "the planned shape is tried twice"
    calm, tight = (cachekd.open_cache(str(tmp_path / name)) for name in ("calm", "tight"))
    assert calm.sample_ids == tight.sample_ids
    worst = max(
        float(np.abs(left.logits.next_logprob - right.logits.next_logprob).max())
        for left, right in zip(calm, tight, strict=True)
    )
    assert worst < 2e-5
    units = read_state(Location(str(tmp_path / "tight"))).units.values()
    assert any(unit.numerics["split"] for unit in units)


def test_one_failure_of_memory_changes_no_byte(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cachekd.precompute(config(family, data, tmp_path / "calm"))
    score, calls = HFTeacher.score, []

    def shaky(self: HFTeacher, *args: object) -> object:
        calls.append(1)
        if len(calls) % 5 == 2:
            raise MemoryError("injected")
        return score(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(HFTeacher, "score", shaky)
    cachekd.precompute(config(family, data, tmp_path / "shaky"))
    assert shards(tmp_path / "shaky") == shards(tmp_path / "calm")


def test_no_memory_for_one_document_names_it(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: HFTeacher, *args: object) -> object:
        raise MemoryError("injected")

    monkeypatch.setattr(HFTeacher, "score", never)
    with pytest.raises(TeacherError, match=r"out of memory for one document.*data\.jsonl row \d+"):
        cachekd.precompute(config(family, data, tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_found_before_the_model_is_loaded(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cachekd.store.io import Location

    monkeypatch.setattr(Location, "free_bytes", lambda self: 1000)
    monkeypatch.setattr(HFTeacher, "load", lambda *args: pytest.fail("the model was loaded"))
    with pytest.raises(StoreError, match="GB free; this run may need"):
        cachekd.precompute(config(family, data, tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_a_run_beside_an_unfinished_one_is_sealed_without_it(
    family: Family, data: Path, tmp_path: Path
) -> None:
    """Samples without targets wait for the seal that comes when their run is finished."""
    from cachekd.store.verify import verify

    cache = tmp_path / "cache"
    with pytest.raises(Incomplete):
        cachekd.precompute(config(family, data, cache, max_hours=1e-9))
    other = write_rows(tmp_path / "other.jsonl", chat_rows(5, first=100))
    assert cachekd.precompute(config(family, other, cache))["samples"] == 5
    assert len(cachekd.open_cache(str(cache))) == 5
    assert not verify(str(cache)).problems
    assert cachekd.precompute(config(family, data, cache))["samples"] == 35
    assert len(cachekd.open_cache(str(cache))) == 35


def test_a_lost_shard_is_made_anew(family: Family, data: Path, tmp_path: Path) -> None:
    from cachekd.store.verify import verify

    cache = tmp_path / "cache"
    first = cachekd.precompute(config(family, data, cache))
    victim = cache / "logits" / next(n for n in shards(cache))
    victim.unlink()
    assert verify(str(cache)).problems
    again = cachekd.precompute(config(family, data, cache))
    assert again["shards_to_write"] == 1 and again["root"] == first["root"]
    assert victim.exists() and not verify(str(cache)).problems


def test_a_writer_that_came_second_with_another_capture_is_refused(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found the place empty; only the first may write its identity."""
    from cachekd import capture
    from cachekd.errors import MismatchError

    cache, prepared = tmp_path / "cache", capture.prepare_job
    second = prepared(config(family, data, cache, logits_top_k=8))
    cachekd.precompute(config(family, data, cache))
    monkeypatch.setattr(capture, "prepare_job", lambda config: second)
    with pytest.raises(MismatchError, match=r"capture\.selection\.k: 64 / 8"):
        cachekd.precompute(second.config)


def test_an_interruption_before_the_teacher_leaves_nothing(
    cachekd: Callable[..., Ran],
    family: Family,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cachekd.capture import prepare

    def interrupted(*args: object, **kwargs: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(prepare, "freeze", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ran = cachekd(
            "precompute", "--teacher", family.teacher, "--data", data, "--cache", tmp_path / "cache"
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ran.code == 3 and "run the same command again" in ran.err
    assert not (tmp_path / "cache").exists()


def test_response_rows_only(family: Family, data: Path, tmp_path: Path) -> None:
    from cachekd.data.alignment import LossMask, trained_rows

    cachekd.precompute(config(family, data, tmp_path / "cache", rows="response"))
    for record in cachekd.open_cache(str(tmp_path / "cache")):
        wanted = trained_rows(record.roles, record.prompt_length, LossMask.AUTO)
        assert np.array_equal(np.diff(record.logits.offsets) > 0, wanted)
        assert (record.logits.tail[~wanted] == 0).all()


def test_two_caches_on_one_place_are_refused(
    cachekd: Callable[..., Ran], family: Family, data: Path, tmp_path: Path
) -> None:
    common = ("--data", data, "--cache", tmp_path / "cache", "--teacher")
    assert cachekd("precompute", *common, family.teacher).code == 0
    other = cachekd("precompute", *common, family.student)
    assert other.code == 5 and "source.weights" in other.err
    spec = cachekd("precompute", *common, family.teacher, "--logits-top-k", 8)
    assert spec.code == 5 and "capture.selection.k: 64 / 8" in spec.err


@pytest.mark.parametrize("few", [1, 2, 3, 4])  # either plan may be the first
def test_two_that_begin_the_same_run_share_one_plan(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """Their teachers' numbers differ, so do their priors: the plan that is first counts."""
    from cachekd.capture import worker
    from cachekd.engines import local

    cache = tmp_path / "cache"
    settings = config(family, data, cache)
    try_teacher, others = worker.try_teacher, []

    def learned_of_few(records: list[TopKLogits], header: CodecHeader, *_: int) -> Prior:
        return learn_prior(records[:few], header.vocab_size, budget=0)

    def beaten(job: Job, teacher: Teacher, **further: Callable[..., Any]) -> Job:
        """Meanwhile another process, with another prior, has written its plan."""
        mine = try_teacher(job, teacher, **further)
        if not others:
            others.append(1)
            with monkeypatch.context() as patch:
                patch.setattr("cachekd.capture.trial.best_prior", learned_of_few)
                patch.setattr(local, "run_units", lambda *_, **__: 1)  # stopped before a unit
                with pytest.raises(Incomplete):
                    cachekd.precompute(settings)
        return mine

    monkeypatch.setattr(worker, "try_teacher", beaten)
    report = cachekd.precompute(settings)
    state = read_state(Location(str(cache)))
    assert len(state.plans) == 2, "without two plans the test would prove nothing"
    assert len({plan for plan, _ in state.units}) == 1, "units of one plan alone"
    assert len({facts.prior for facts in state.shards().values()}) == 1
    assert report["samples"] == 30 and report["keys"] == len(state.done_keys())
    again = cachekd.precompute(settings)
    assert again["documents_to_score"] == 0


def test_a_stop_in_the_first_batches_leaves_nothing_behind(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, calls, steps = HFTeacher.score, [], []

    def interrupted(self: HFTeacher, *args: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return score(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(HFTeacher, "score", interrupted)
    with pytest.raises(Incomplete, match="by a signal: 0 of"):
        cachekd.precompute(config(family, data, tmp_path / "cache"), progress=steps.append)
    assert len(calls) == len(steps) == 1 and not (tmp_path / "cache").exists()


def test_progress_counts_every_token_once(family: Family, data: Path, tmp_path: Path) -> None:
    steps = []
    report = cachekd.precompute(config(family, data, tmp_path / "cache"), progress=steps.append)
    done = [step.tokens_done for step in steps]
    assert done == sorted(set(done)) and done[-1] == steps[-1].tokens_total == report["tokens"]
    assert all(step.seconds > 0 for step in steps)


def test_a_lost_prior_is_learned_again(family: Family, data: Path, tmp_path: Path) -> None:
    calm, cache = tmp_path / "calm", tmp_path / "cache"
    for place in (calm, cache):
        cachekd.precompute(config(family, data, place))
    (lost,) = (cache / "priors").iterdir()
    lost.unlink()
    report = cachekd.precompute(config(family, data, cache))
    assert report["samples"] == 30 and lost.exists(), "the same batches give the same prior"
    assert shards(cache) == shards(calm) and not verify(str(cache)).problems


def test_the_other_codec_can_continue_a_run(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cachekd.engines import local

    settings = config(family, data, tmp_path / "cache")
    with monkeypatch.context() as patch:
        run = local.run_units
        patch.setattr(local, "run_units", lambda units, do, **how: run(units[:2], do, **how) + 1)
        with pytest.raises(Incomplete):
            cachekd.precompute(settings)
    cachekd.precompute(replace(settings, codec="plain"))
    state = read_state(Location(settings.cache))
    priors = [facts.prior for facts in state.shards().values()]
    assert None in priors and len(set(priors)) == 2, "plain shards name no prior"
    assert not verify(settings.cache).problems
