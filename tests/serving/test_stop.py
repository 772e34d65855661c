"""How a server ends: in good order by a signal, and by a kill that its clients get over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hosting import Watched, assert_same, connect, documents, selection, serving, until
from tiny import Family

from cachekd.errors import MismatchError, TeacherError
from cachekd.store.tokenizer import tokenizer_facts
from cachekd.teachers.dummy import DummyTeacher

TESTS = Path(__file__).parents[1]
Start = Callable[..., tuple[Any, str]]


def test_what_was_accepted_is_answered_and_nothing_new() -> None:
    teacher = Watched()
    teacher.free.clear()
    texts = documents(3)
    with serving(teacher) as server, ThreadPoolExecutor(2) as pool:
        asked = pool.submit(connect(server).score, texts, 0, selection(), [None] * 3)
        until(lambda: teacher.calls)
        late = connect(server, patience=0.01)
        ended = pool.submit(server.__exit__, None, None, None)
        until(lambda: server.stopping)
        with pytest.raises(TeacherError, match="no answer"):
            late.score(texts, 0, selection(), [None] * 3)
        assert not asked.done() and not ended.done()
        teacher.free.set()
        assert_same(asked.result(), DummyTeacher().score(texts, 20, selection(), [None] * 3))
        ended.result()
        assert not server.alive and server.answered == 1


@pytest.fixture
def start(family: Family, tmp_path: Path) -> Iterator[Start]:
    """Starts ``serve-teacher`` as a process of its own; gives it and its URL."""
    running: list[subprocess.Popen[str]] = []

    def run(*flags: object) -> tuple[Any, str]:
        command = [sys.executable, "-m", "cachekd_cli", "serve-teacher", "--json"]
        command += ["--teacher", family.teacher, "--threads", 1, *flags]
        environment = {**os.environ, "PYTHONPATH": str(TESTS), "STARTED": str(tmp_path / "started")}
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        running.append(process)
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline())["url"]

    yield run
    for process in running:
        process.kill()
        process.communicate()


def known(family: Family) -> dict[str, Any]:
    facts = tokenizer_facts(family.teacher)
    return {"tokenizer": facts.digest, "vocab_size": facts.vocab_size}


def scored(client: Any, family: Family, seed: int) -> tuple[Any, Any]:
    """What a server says of some texts, and what the dummy teacher says."""
    texts = documents(3, seed=seed, vocab=family.vocab)
    chosen = selection(vocab_size=family.vocab)
    expected = DummyTeacher().score(texts, 20, chosen, [None] * 3)
    return client.score(texts, 0, chosen, [None] * 3), expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_with_0_and_answers_first(
    start: Start, family: Family, tmp_path: Path, number: signal.Signals
) -> None:
    process, url = start("--backend", "hosting:Slow", "--port", 0)
    client = connect(url, **known(family))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(scored, client, family, 0)
        until((tmp_path / "started").exists)
        process.send_signal(number)
        assert_same(*asked.result())
    out, err = process.communicate()
    assert process.returncode == 0 and out == ""
    assert err.splitlines() == [
        f"serving {family.teacher} at {url}",
        "stopped; 1 requests answered",
    ]


@pytest.mark.reliability
def test_a_killed_server_that_is_started_again_loses_nothing(start: Start, family: Family) -> None:
    process, url = start("--backend", "dummy", "--port", 0)
    port = url.rsplit(":", 1)[1]
    client = connect(url, patience=120.0, **known(family))
    done: list[tuple[Any, Any]] = []
    enough = threading.Event()

    def work() -> None:
        while not enough.is_set():
            done.append(scored(client, family, len(done)))

    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(work)
        for _ in range(3):
            before = len(done)
            until(lambda before=before: len(done) > before + 20 or worker.done())
            process.kill()
            process.wait()
            process, again = start("--backend", "dummy", "--port", port)
            assert again == url
        enough.set()
        worker.result()
    assert len(done) > 60
    for found, expected in done:
        assert_same(found, expected)


@pytest.mark.reliability
def test_another_teacher_that_takes_the_place_is_refused(start: Start, family: Family) -> None:
    process, url = start("--backend", "dummy", "--port", 0)
    client = connect(url, patience=120.0, **known(family))
    assert_same(*scored(client, family, 0))
    process.kill()
    process.wait()
    start("--backend", "hf", "--port", url.rsplit(":", 1)[1])
    with pytest.raises(MismatchError, match="weights: 'dummy' / "):
        scored(client, family, 1)
