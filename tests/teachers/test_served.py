"""The client of a served teacher: what it asks again, what it refuses, and what it says."""

from __future__ import annotations

import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from faulty import FAULTS, proxy
from hosting import (
    VOCAB,
    Watched,
    assert_same,
    connect,
    documents,
    hosted,
    selection,
    serving,
    until,
)

from cachekd.errors import ConfigError, MismatchError, TeacherError
from cachekd.teachers import RemoteConfig, Selection, _http
from cachekd.teachers.dummy import DummyTeacher

TOKEN = "correct-horse-battery"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses: what is tested is that there are some, and what follows."""
    monkeypatch.setattr(_http, "_FIRST_PAUSE", 0.002)
    monkeypatch.setattr(_http, "_LONGEST_PAUSE", 0.02)


def score(client: Any, seed: int = 0) -> Any:
    texts = documents(3, seed=seed)
    found = client.score(texts, 0, selection(), [None] * 3)
    assert_same(found, DummyTeacher().score(texts, 20, selection(), [None] * 3))
    return found


def test_it_says_who_the_teacher_is() -> None:
    with serving(Watched()) as server:
        client = connect(server)
    assert client.source == hosted(None).source and client.context_length == 64
    assert client.numerics == {"device": "none", "attn_implementation": "sdpa"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_got_over(fault: str) -> None:
    with serving(Watched()) as server, proxy(server.url) as between:
        client = connect(between, timeout=0.5)
        between.plan = [fault, fault]
        score(client)
        assert between.seen == ["good", fault, fault, "good"]


def test_schedules_of_faults_change_no_number() -> None:
    random = np.random.default_rng(0)
    faults = [name for name in FAULTS if name != "stall"]
    with serving(Watched()) as server, proxy(server.url) as between:
        for seed in range(25):
            between.plan = []
            client = connect(between)
            drawn = random.integers(0, len(faults) + 2, 4).tolist()
            between.plan = [faults[i] if i < len(faults) else None for i in drawn]
            score(client, seed)
    assert set(between.seen) == {"good", *faults}


def test_patience_ends(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Watched()) as server, proxy(server.url) as between:
        client = connect(between, patience=0.5)
        between.plan = ["503"] * 1000
        with caplog.at_level(logging.WARNING), pytest.raises(TeacherError) as caught:
            score(client)
    told = str(caught.value)
    assert between.url + "/v1/score" in told and "503 come again" in told
    assert between.seen.count("503") >= 2 and f"after {between.seen.count('503')} tries" in told
    assert len(caplog.records) == 1 and "asked again" in caplog.text


def test_a_full_queue_is_waited_for() -> None:
    teacher = Watched()
    teacher.free.clear()
    with serving(teacher, max_queue=1) as server, ThreadPoolExecutor(2) as pool:
        clients = [connect(server), connect(server), connect(server, patience=0.01)]
        first = pool.submit(score, clients[0])
        until(lambda: teacher.calls)
        with pytest.raises(TeacherError, match="503 too many requests wait"):
            score(clients[2])
        second = pool.submit(score, clients[1])
        teacher.free.set()
        assert first.result() and second.result()


def test_what_is_refused_is_not_asked_again() -> None:
    with serving(Watched()) as server, proxy(server.url) as between:
        client = connect(between)
        with pytest.raises(TeacherError, match="refused with 400: expected ids of 0 to 39"):
            client.score([np.int32([1, VOCAB])], 0, selection(), [None])
        with pytest.raises(TeacherError, match="at most 64 tokens"):
            client.score([np.zeros(65, np.int32)], 0, selection(), [None])
        assert between.seen == ["good"] * 3


def test_a_server_that_is_down_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Watched()) as server:
        url = server.url
    monkeypatch.setattr(_http, "_START", 0.05)
    with pytest.raises(TeacherError) as caught:
        connect(url, patience=1e9)
    told = str(caught.value)
    assert url in told and "ConnectError" in told and "cachekd serve-teacher --teacher M" in told


def test_something_else_answers_there() -> None:
    with serving(Watched()) as server, pytest.raises(TeacherError) as caught:
        connect(server.url + "/elsewhere")
    assert "is no cachekd serve-teacher" in str(caught.value)


@pytest.mark.parametrize("sent", [None, "wrong"])
def test_another_token(sent: str | None, caplog: pytest.LogCaptureFixture) -> None:
    with serving(Watched(), token=TOKEN) as server:
        with pytest.raises(TeacherError, match="CACHEKD_TEACHER_TOKEN") as caught:
            connect(server, token=sent)
        score(connect(server, token=TOKEN))
    assert TOKEN not in str(caught.value) + caplog.text
    assert sent is None or sent not in str(caught.value)


def test_the_token_is_in_no_message(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Watched(), token=TOKEN) as server, proxy(server.url) as between:
        client = connect(between, token=TOKEN, patience=0.05)
        between.plan = ["reset"] * 100
        with caplog.at_level(logging.DEBUG), pytest.raises(TeacherError) as caught:
            score(client)
    settings = {"url": "http://x", "timeout": 1.0, "patience": 1.0, "tokenizer": "t"}
    config = RemoteConfig(token=TOKEN, vocab_size=2, **settings)
    assert TOKEN not in str(caught.value) + caplog.text + repr(config) + repr(client)


@pytest.mark.parametrize(
    "url", ["localhost:8765", "ftp://x", "http://user:secret@host:1", "http://", ""]
)
def test_urls_that_cannot_be_used(url: str) -> None:
    with pytest.raises(ConfigError, match="expected http://host:port") as caught:
        connect(url)
    assert "secret" not in str(caught.value)


def test_another_tokenizer_is_refused() -> None:
    with serving(Watched()) as server:
        with pytest.raises(MismatchError, match="tokenizer: 'mine' / 'tokenizer'"):
            connect(server, tokenizer="mine")
        with pytest.raises(MismatchError, match="vocab_size: 41 / 40"):
            connect(server, vocab_size=41)


def test_a_server_that_comes_back_is_used_again() -> None:
    with serving(Watched()) as server:
        client = connect(server)
        score(client)
        port = int(server.url.rsplit(":", 1)[1])
    with serving(Watched(), port=port):
        score(client, 1)


def test_another_teacher_at_the_same_address_is_refused() -> None:
    with serving(Watched()) as server:
        client = connect(server)
        port = int(server.url.rsplit(":", 1)[1])
    with serving(Watched(), port=port, source={"weights": "other"}) as server:
        with pytest.raises(MismatchError, match="weights: 'dummy' / 'other'") as caught:
            score(client)
        assert server.url in str(caught.value)
        score(connect(server))


def test_sampled_entries_are_refused() -> None:
    sampled = Selection(k=0, p=1.0, min_k=0, vocab_size=VOCAB, temperatures=(), samples=5)
    with serving(Watched()) as server, pytest.raises(ConfigError, match="not served"):
        connect(server).score(documents(1), 0, sampled, [None])


def test_httpx2_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ConfigError, match=r"pip install 'cachekd\[serve\]'"):
        connect("http://127.0.0.1:1")
