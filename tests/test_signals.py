"""Signals at any moment: a quick end, one line, an exit code, and the same bytes in the end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forking import Ended, Forked, command, handles_signals
from tiny import Family, chat_rows, write_rows

from cachekd.signals import stop_on_signals
from cachekd.store.verify import verify
from cachekd.teachers.dummy import DummyTeacher

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
QUICK = 30.0  # a guard for machines that are busy; what is waited for takes 5 seconds at most
# How responses are spread over the files of generated/ tells of when they came.
CONTENT = ("logits", "samples", "plans", "priors", "index")


@pytest.fixture(autouse=True)
def hangups(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a terminal, whatever these tests were started by."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def content(cache: Path) -> dict[str, bytes]:
    """All that does not tell of when and where it was made."""
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for folder in CONTENT
        for path in (cache / folder).glob("*")
    }


def flags(family: Family, data: Path, cache: Path, *further: object) -> tuple[object, ...]:
    return (
        *("precompute", "--teacher", family.teacher, "--backend", "dummy", "--data", data),
        *("--cache", cache, "--threads", 1, "--unit-tokens", 100, "--batch-tokens", 100),
        *("--on-long", "skip", *further),
    )


def assert_in_order(ended: Ended, line: str) -> None:
    """Done, or stopped with one line that says how to go on."""
    assert ended.code in (0, 3), ended
    assert "Traceback" not in ended.err and "Error" not in ended.err, ended
    if ended.code == 3:
        assert line in ended.lines[-1], ended
        assert sum("cachekd: " in said for said in ended.lines) == 1


def test_work_that_does_not_look_at_the_flag_is_interrupted_in_the_end() -> None:
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGALRM)}
    with pytest.raises(KeyboardInterrupt), stop_on_signals(patience=0.05) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        time.sleep(QUICK)
    assert {number: signal.getsignal(number) for number in before} == before


def test_work_without_a_limit_ends_by_itself_or_by_a_second_interrupt() -> None:
    timer = signal.getitimer(signal.ITIMER_REAL)
    with stop_on_signals(patience=None) as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        assert signal.getitimer(signal.ITIMER_REAL)[0] <= timer[0]
    with pytest.raises(KeyboardInterrupt), stop_on_signals(patience=None):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_process_that_nohup_started_goes_on_when_its_terminal_closes() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.asked
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked


def test_a_teacher_that_is_being_loaded_is_not_waited_for(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = tmp_path / "loading"

    def load(*args: Any) -> DummyTeacher:
        loading.touch()
        time.sleep(1000)
        return DummyTeacher()

    monkeypatch.setattr(DummyTeacher, "load", staticmethod(load))
    process = Forked(command(*flags(family, data, tmp_path / "cache")), tmp_path / "log")
    process.until(loading.exists)
    process.send(signal.SIGHUP)
    ended = process.end(QUICK)
    assert ended.code == 3
    assert_in_order(ended, "cachekd: interrupted; run the same command again to continue")
    assert not (tmp_path / "cache" / "plans").exists()


@pytest.mark.reliability
@pytest.mark.parametrize("times", [1, 2])
def test_a_batch_that_takes_long_is_dropped_and_a_second_interrupt_does_not_wait(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    score, calls = DummyTeacher.score, []

    def slow(self: DummyTeacher, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 8:
            (tmp_path / "slow").touch()
            time.sleep(1000)
        return score(self, *args)

    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(DummyTeacher, "score", slow)
        process = Forked(command(*flags(family, data, cache)), tmp_path / "log")
        process.until((tmp_path / "slow").exists)
        for _ in range(times):
            process.send(signal.SIGINT)
            time.sleep(0.2)
        ended = process.end(QUICK)
    assert ended.code == 3 and list((cache / "units").iterdir())
    assert_in_order(ended, "run the same command again to continue")
    for place in (cache, tmp_path / "calm"):
        assert Forked(command(*flags(family, data, place)), tmp_path / "log").end().code == 0
    assert content(cache) == content(tmp_path / "calm")


def stopped_until_done(run: Callable[[], None], log: Path, line: str, chance: random.Random) -> int:
    """Run again and again, each with a signal at a random moment; how often it was stopped."""
    stopped, longest = 0, 0.5
    while True:
        started = time.monotonic()
        process = Forked(run, log)
        process.until(lambda process=process: handles_signals(process.pid))
        time.sleep(chance.uniform(0, longest))
        if not process.ended():
            process.send(chance.choice(SIGNALS))
        ended = process.end(QUICK)
        assert_in_order(ended, line)
        if ended.code == 0:
            return stopped
        stopped += 1
        longest = max(longest, 1.5 * (time.monotonic() - started))


@pytest.mark.reliability
@pytest.mark.parametrize("further", [(), ("--writers", 1, "--generate", "sample")])
def test_precompute_stopped_at_random_ends_with_the_bytes_of_a_calm_run(
    family: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    further: tuple[object, ...],
) -> None:
    from cachekd.capture import worker

    monkeypatch.setattr(worker, "_WORTH_A_PROCESS", 0)
    data = write_rows(tmp_path / "data.jsonl", chat_rows(60))
    further += ("--max-new-tokens", 6) * bool(further)
    calm, cache = tmp_path / "calm", tmp_path / "cache"
    assert Forked(command(*flags(family, data, calm, *further)), tmp_path / "log").end().code == 0
    chance, stopped = random.Random(len(further)), 0
    run = command(*flags(family, data, cache, *further))
    while stopped < 2:
        stopped += stopped_until_done(run, tmp_path / "log", "un the same command again", chance)
        assert content(cache) == content(calm)
        assert not [path for path in cache.rglob("*") if path.name.startswith(".")]


@pytest.mark.reliability
def test_seal_merge_and_verify_stopped_at_random_leave_nothing_half_written(
    family: Family, tmp_path: Path
) -> None:
    for name, first in (("a", 0), ("b", 40)):
        data = write_rows(tmp_path / f"{name}.jsonl", chat_rows(40, first))
        ran = Forked(command(*flags(family, data, tmp_path / name, "--no-seal")), tmp_path / "log")
        assert ran.end().code == 0
    chance, again, log = random.Random(7), "run the same command again", tmp_path / "log"
    a, b, both, small = (tmp_path / name for name in ("a", "b", "both", "small"))
    merge = ("merge", a, b, "--out", both)
    recode = ("merge", a, "--recode", "--out", small)
    for arguments, made in ((("seal", a), a), (("seal", b), b), (merge, both), (recode, small)):
        stopped_until_done(command(*arguments), log, again, chance)
        assert list(made.glob("manifest-*.json"))
        assert not [path for path in made.rglob("*") if path.name.startswith(".tmp")]
        assert not verify(str(made)).problems
    nothing_left = "nothing was changed; run the same command again to begin anew"
    stopped_until_done(command("verify", both), log, nothing_left, chance)


@pytest.mark.reliability
@pytest.mark.parametrize("name", ["precompute", "train", "serve-teacher", "verify"])
def test_a_signal_while_a_new_process_imports_ends_it_with_one_line(
    family: Family, data: Path, tmp_path: Path, name: str
) -> None:
    arguments = {
        "precompute": flags(family, data, tmp_path / "cache"),
        "train": ("train", "--cache", tmp_path, "--student", family.student, "--output-dir", "o"),
        "serve-teacher": ("serve-teacher", "--teacher", family.teacher, "--port", 0),
        "verify": ("verify", tmp_path, "--teacher", family.teacher),
    }[name]
    chance = random.Random(name)
    for number in SIGNALS:
        process = subprocess.Popen(
            [sys.executable, "-m", "cachekd_cli", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not handles_signals(process.pid):
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.5))
        process.send_signal(number)
        out, err = process.communicate(timeout=QUICK)
        ended = Ended(process.returncode, out, err)
        assert "Traceback" not in err and ended.code in (1, 2, 3), ended
        assert len(ended.lines) == 1 and ended.lines[0].startswith("cachekd: "), ended
        if ended.code != 3:  # it had found out before that there is no such cache
            assert name in ("train", "verify"), ended


def test_an_output_that_nobody_reads_ends_the_command_without_a_trace(
    family: Family, data: Path, tmp_path: Path
) -> None:
    def unread() -> None:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)
        command(*flags(family, data, tmp_path / "cache", "--json"))()

    ended = Forked(unread, tmp_path / "log").end()
    assert ended.code == 1 and "Traceback" not in ended.err, ended
    assert "Exception" not in ended.err
    assert list((tmp_path / "cache").glob("manifest-*.json")), "the work itself was done"
