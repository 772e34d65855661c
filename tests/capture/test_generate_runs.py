"""Runs that write responses: nothing is written twice, however a run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from runs import NEW_TOKENS, ids_of, writing_config
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd.capture import Progress, generate
from cachekd.errors import CorruptCache, Incomplete, TeacherError
from cachekd.store.verify import verify
from cachekd.teachers import WritingSpec
from cachekd.teachers.dummy import DummyTeacher
from cachekd.types import Int32


def test_nothing_is_written_twice(
    family: Family, tmp_path: Path, calls: list[tuple[bytes, int]]
) -> None:
    """Again: nothing. More rows, more samples: what is new. The seal stays what it was."""
    few = write_rows(tmp_path / "few.jsonl", chat_rows(5))
    first = cachekd.precompute(writing_config(family, few, tmp_path / "c"))
    again = cachekd.precompute(writing_config(family, few, tmp_path / "c"))
    assert len(calls) == 5 and again["root"] == first["root"]
    assert again["responses_to_generate"] == 0 and again["generation"] == 1
    more = write_rows(tmp_path / "more.jsonl", chat_rows(8))
    report = cachekd.precompute(writing_config(family, more, tmp_path / "c"))
    assert len(calls) == 8 and report["generated"] == report["samples"] == 8
    before = ids_of(tmp_path / "c")
    cachekd.precompute(writing_config(family, more, tmp_path / "c", generation_samples=2))
    assert len(calls) == len(set(calls)) == 16
    assert ids_of(tmp_path / "c")[:8] == before
    assert not verify(str(tmp_path / "c")).problems
    greedy = cachekd.precompute(writing_config(family, more, tmp_path / "c", generate="greedy"))
    assert greedy["responses_generated"] == 8


def test_a_kill_between_two_batches_loses_one_batch_at_most(
    family: Family,
    data: Path,
    tmp_path: Path,
    calls: list[tuple[bytes, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is not caught and leaves no time to commit, as a kill."""
    commit, committed = generate.write_responses, []

    def dying(*args: Any) -> str:
        if len(committed) == 3:
            raise KeyboardInterrupt
        committed.append(len(args[2]))
        return commit(*args)

    monkeypatch.setattr(generate, "write_responses", dying)
    with pytest.raises(KeyboardInterrupt):
        cachekd.precompute(writing_config(family, data, tmp_path / "c"))
    asked = len(calls)
    assert 0 < sum(committed) < asked < 30
    dry = cachekd.precompute(writing_config(family, data, tmp_path / "c", dry_run=True))
    assert dry["responses_to_generate"] == 30 - sum(committed) and dry["responses"] == 30
    assert dry["tokens_to_generate_at_most"] == NEW_TOKENS * dry["responses_to_generate"]
    monkeypatch.setattr(generate, "write_responses", commit)
    report = cachekd.precompute(writing_config(family, data, tmp_path / "c"))
    assert len(calls) - asked == report["responses_generated"] == 30 - sum(committed)
    assert report["tokens"] <= dry["tokens"] and report["bytes"] < dry["bytes_at_most"]
    cachekd.precompute(writing_config(family, data, tmp_path / "calm"))
    assert ids_of(tmp_path / "c") == ids_of(tmp_path / "calm")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_in_good_order(
    family: Family,
    data: Path,
    tmp_path: Path,
    calls: list[tuple[bytes, int]],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    """All that is written is committed, though no minute has passed."""
    monkeypatch.setattr(generate, "COMMIT_SECONDS", 1e9)
    steps: list[Progress] = []

    def show(step: Progress) -> None:
        steps.append(step)
        if len(steps) == 3:
            os.kill(os.getpid(), number)

    with pytest.raises(Incomplete, match=r"by a signal: \d+ of 30 responses"):
        cachekd.precompute(writing_config(family, data, tmp_path / "c"), progress=show)
    asked = len(calls)
    assert 0 < asked < 30 and [step.stage for step in steps] == ["responses"] * 3
    cachekd.precompute(writing_config(family, data, tmp_path / "c"), progress=show)
    assert len(calls) == len(set(calls)) == 30
    written = [step for step in steps[3:] if step.stage == "responses"]
    assert written[-1].tokens_done == written[-1].tokens_total
    assert steps[-1].stage == "teacher"


def test_max_hours_before_the_first_response(family: Family, data: Path, tmp_path: Path) -> None:
    with pytest.raises(Incomplete, match="before --max-hours 1e-09: 0 of 30 responses"):
        cachekd.precompute(writing_config(family, data, tmp_path / "c", max_hours=1e-9))
    assert not (tmp_path / "c").exists()


def test_memory_that_is_short_splits_a_batch(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cachekd.precompute(writing_config(family, data, tmp_path / "calm"))
    write = DummyTeacher.write

    def small(self: DummyTeacher, prompts: Any, spec: WritingSpec) -> list[Int32]:
        if len(prompts) > most:
            raise MemoryError("injected")
        return write(self, prompts, spec)

    monkeypatch.setattr(DummyTeacher, "write", small)
    most = 1
    cachekd.precompute(writing_config(family, data, tmp_path / "tight"))
    assert ids_of(tmp_path / "tight") == ids_of(tmp_path / "calm")
    most = 0
    with pytest.raises(TeacherError, match=r"data.jsonl row \d+: .*injected"):
        cachekd.precompute(writing_config(family, data, tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_an_altered_file_of_responses_is_refused(
    family: Family, data: Path, tmp_path: Path, calls: list[tuple[bytes, int]]
) -> None:
    cachekd.precompute(writing_config(family, data, tmp_path / "c"))
    victim = next((tmp_path / "c" / "generated").glob("*.parquet"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(CorruptCache, match=f"delete .*{victim.name}"):
        cachekd.precompute(writing_config(family, data, tmp_path / "c"))
    victim.unlink()
    report = cachekd.precompute(writing_config(family, data, tmp_path / "c"))
    assert report["responses_generated"] == len(calls) - 30 > 0
    assert report["documents_to_score"] == 0


@pytest.mark.slow
@pytest.mark.reliability
def test_kill_9_of_a_real_process(family: Family, tmp_path: Path) -> None:
    """Killed while it writes; the same command ends with what a quiet run has."""
    data = write_rows(tmp_path / "data.jsonl", chat_rows(400))
    settings = "from cachekd.capture import generate; generate.COMMIT_SECONDS = 0.0\n"
    main = "import sys; from cachekd_cli.main import main; sys.exit(main())"
    common = ["--teacher", family.teacher, "--data", data, "--threads", "1", "--generate", "sample"]
    common += ["--max-new-tokens", NEW_TOKENS, "--batch-tokens", "100", "--on-long", "skip"]
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", settings + main, "precompute", "--cache", cache, *common]
    process = subprocess.Popen([str(part) for part in command])
    deadline = time.monotonic() + 120
    while len(list((cache / "generated").glob("*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    there = len(list((cache / "generated").glob("*.parquet")))
    assert there >= 3 and not (cache / "plans").exists()
    further = {"backend": "hf", "on_long": "skip", "batch_tokens": 100}
    report = cachekd.precompute(writing_config(family, data, cache, **further))
    assert 0 < report["responses_generated"] < report["responses"]
    cachekd.precompute(writing_config(family, data, tmp_path / "calm", **further))
    assert ids_of(cache) == ids_of(tmp_path / "calm")
