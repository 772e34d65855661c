"""Processes that take steps in turn: order, memory that runs out, ends of all kinds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from comparing import STARTED, config, forked, step

from cachekd.costs.comparison import children
from cachekd.costs.comparison.jobs import (
    END,
    GO,
    Capture,
    Ended,
    Failure,
    Job,
    Ready,
    Scoring,
    Started,
)
from cachekd.costs.comparison.rounds import Captured, Taken, capture, take_turns

READY = Ready(tokens=20, batch=1, device="cpu")
Answer = Callable[[Job, int], None]


def scripted(act: Answer, log: Path) -> Callable[[Connection], None]:
    """A process whose steps take as many seconds as their number; ``act`` comes before each."""

    def serve(connection: Connection) -> None:
        connection.send(STARTED)
        job: Job = connection.recv()
        connection.send(READY)
        number = 0
        try:
            while (word := connection.recv()) == GO:
                act(job, number)
                with log.open("a") as stream:
                    stream.write(f"{job.side}{number} ")
                connection.send(step(float(number), tokens=10))
                number += 1
            assert word == END
            connection.send(Ended(peak_bytes=7, no_joules="none", save_seconds=3.0))
        except MemoryError as error:
            connection.send(Failure(kind="memory", text=str(error), error="MemoryError"))

    return serve


@pytest.fixture
def turns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[Answer], tuple[dict[str, Taken | Failure], list[str]]]:
    """Runs two sides of three steps after one that is left out; what they took, in what order."""

    def run(act: Answer) -> tuple[dict[str, Taken | Failure], list[str]]:
        log = tmp_path / "log"
        monkeypatch.setattr(children, "launch", lambda: forked(scripted(act, log)))
        settings = config(steps=3, discard=1)
        jobs = [Job(side=side, config=settings, folder=tmp_path) for side in ("a", "b")]
        told: list[int] = []
        found = take_turns(jobs, lambda what, done, of: told.append(done))
        assert (told[0], told[-1]) == (0, 4)
        return found, log.read_text().split()

    return run


def test_steps_alternate_and_the_first_are_left_out(turns: Callable[..., tuple]) -> None:
    found, order = turns(lambda job, number: None)
    assert order == ["a0", "b0", "b1", "a1", "a2", "b2", "b3", "a3"]
    for side in found.values():
        assert [step.seconds for step in side.steps] == [1.0, 2.0, 3.0]
        assert [step.seconds for step in side.warmup] == [0.0]
        assert side.alternated and side.ended.peak_bytes == 7 and side.started == STARTED
        assert side.import_seconds > 0 and 0 < side.exit_seconds < 10 and side.cpu > 0


def test_a_side_without_memory_beside_the_others_is_tried_alone(
    turns: Callable[..., tuple], tmp_path: Path
) -> None:
    mark = tmp_path / "tried"

    def act(job: Job, number: int) -> None:
        if job.side == "b" and number == 1 and not mark.exists():
            mark.touch()
            raise MemoryError("injected")

    found, order = turns(act)
    assert all(isinstance(side, Taken) and not side.alternated for side in found.values())
    assert order[-8:] == [f"a{n}" for n in range(4)] + [f"b{n}" for n in range(4)]


def test_a_side_that_never_fits_is_a_failure_and_the_other_stands(
    turns: Callable[..., tuple],
) -> None:
    def act(job: Job, number: int) -> None:
        if job.side == "b":
            raise MemoryError("injected")

    found, _ = turns(act)
    assert found["b"] == Failure(kind="memory", text="injected", error="MemoryError")
    assert isinstance(found["a"], Taken) and len(found["a"].steps) == 3


@pytest.mark.parametrize(
    ("end", "kind", "part"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "killed", "SIGKILL, as a system does"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "died", "SIGTERM"),
        (lambda: os._exit(3), "died", "with code 3"),
    ],
)
def test_a_process_that_ends_is_named(
    turns: Callable[..., tuple], end: Callable[[], None], kind: str, part: str
) -> None:
    def act(job: Job, number: int) -> None:
        if job.side == "b" and number == 2:
            end()

    found, _ = turns(act)
    assert found["b"].kind == kind and part in found["b"].text
    assert isinstance(found["a"], Taken)


def test_a_capture_is_told_as_it_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = Capture(
        tokens=9,
        score_seconds=0.0,
        batches=(),
        cpu_seconds=0.0,
        bytes=1,
        peak_bytes=1,
        device="cpu",
        joules=None,
        first_joules=None,
        no_joules="none",
    )

    def serve(connection: Connection) -> None:
        connection.send(STARTED)
        connection.recv()
        for tokens in (4, 9):
            connection.send(Scoring(tokens=tokens, of=9))
        connection.send(done)

    monkeypatch.setattr(children, "launch", lambda: forked(serve))
    told: list[tuple[str, int, int]] = []
    found = capture(
        Job(side="capture", config=config(), folder=tmp_path), lambda *what: told.append(what)
    )
    assert told == [("capture", 4, 9), ("capture", 9, 9)]
    assert isinstance(found, Captured) and found.capture == done


def test_no_process_outlives_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started = []

    def launch() -> tuple:
        started.append(forked(scripted(lambda job, number: None, tmp_path / "log")))
        return started[-1]

    def interrupt(what: str, done: int, of: int) -> None:
        if done:
            raise KeyboardInterrupt

    monkeypatch.setattr(children, "launch", launch)
    jobs = [Job(side=side, config=config(), folder=tmp_path) for side in ("a", "b")]
    with pytest.raises(KeyboardInterrupt):
        take_turns(jobs, interrupt)
    assert len(started) == 2
    assert all(not one.process.is_alive() for one, _ in started)


def test_a_process_that_will_not_end_is_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def deaf(connection: Connection) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        connection.send(STARTED)
        while True:
            signal.pause()

    running = forked(deaf)
    monkeypatch.setattr(children, "launch", lambda: running)
    monkeypatch.setattr(children, "_PATIENCE", 0.05)
    with children.Child(Job(side="a", config=config(), folder=tmp_path)) as child:
        assert child.hear(Started) == STARTED
    assert running[0].wait(timeout=5) == -signal.SIGKILL


@pytest.mark.slow
def test_a_fresh_interpreter_serves_and_ends_with_its_socket(tmp_path: Path) -> None:
    process, connection = children.launch()
    started = connection.recv()
    assert isinstance(started, Started) and started.peak_bytes > 10**7
    folder = tmp_path / "nothing"
    connection.send(Job(side="cached", config=config(), folder=folder))
    failure = connection.recv()
    assert failure.kind == "error" and failure.error == "CacheNotFound"
    connection.close()
    assert process.wait(timeout=30) == 0
