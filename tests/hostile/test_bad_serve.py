"""Bad requests to a served teacher: each is refused, and the next good one is answered."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx2
import numpy as np
import pytest
from hosting import VOCAB, Watched, assert_same, connect, documents, selection, serving
from tiny import Family, Ran

from cachekd.teachers._message import pack, unpack
from cachekd.teachers._wire import ScoreRequest, pack_request
from cachekd.teachers.dummy import DummyTeacher

Run = Callable[..., Ran]
TOKEN = "correct-horse-battery"
LIMIT = 1 << 16


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with serving(Watched(), token=TOKEN, max_body_bytes=LIMIT, max_answer_bytes=1 << 20) as running:
        yield running


@pytest.fixture(autouse=True)
def it_lives(server: Any) -> Iterator[None]:
    """After whatever a test did, a good request gets its right answer."""
    yield
    texts = documents(2)
    found = connect(server, token=TOKEN).score(texts, 0, selection(), [None] * 2)
    assert_same(found, DummyTeacher().score(texts, 20, selection(), [None] * 2))


def request(source_id: str, **changes: Any) -> ScoreRequest:
    texts = documents(2)
    settings = {
        "source_id": source_id,
        "selection": selection(),
        "documents": texts,
        "wanted": [np.ones(len(ids_L) - 1, dtype=bool) for ids_L in texts],
        "given": [None, None],
    }
    return ScoreRequest(**{**settings, **changes})


def source_id(server: Any) -> str:
    return str(connect(server, token=TOKEN)._server.source_id)


def client_of(server: Any) -> httpx2.Client:
    """A client that knows the token."""
    headers = {"authorization": f"Bearer {TOKEN}"}
    return httpx2.Client(base_url=server.url, headers=headers, trust_env=False)


def post(server: Any, content: Any) -> httpx2.Response:
    """Any body, with the token."""
    with client_of(server) as client:
        return client.post("/v1/score", content=content)


def error(reply: httpx2.Response, status: int) -> str:
    assert reply.status_code == status, reply.text
    text = reply.json()["error"]
    assert isinstance(text, str) and TOKEN not in text and "Traceback" not in text
    return text


def raw(server: Any, data: bytes) -> bytes:
    """Bytes as they are, and what comes back until the server closes."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as link:
        link.sendall(data)
        link.shutdown(socket.SHUT_WR)
        found = b""
        while part := link.recv(4096):
            found += part
    return found


@pytest.mark.parametrize("sent", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", "Bearer \xff"])
@pytest.mark.parametrize("path", ["/v1/score", "/v1/identity"])
def test_without_the_token_nothing_is_told(server: Any, path: str, sent: str) -> None:
    with httpx2.Client(trust_env=False) as client:
        method = "POST" if path == "/v1/score" else "GET"
        headers = {"authorization": sent.encode("latin-1")} if sent else {}
        reply = client.request(method, server.url + path, headers=headers)
    assert "token" in error(reply, 401) and reply.headers["www-authenticate"] == "Bearer"


def test_health_needs_no_token_and_tells_nothing_else(server: Any) -> None:
    reply = httpx2.get(server.url + "/health", trust_env=False)
    assert reply.status_code == 200
    assert reply.json() == {"ready": True, "stopping": False, "queued": 0}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/score", 405),
        ("PUT", "/v1/score", 405),
        ("DELETE", "/v1/identity", 405),
        ("POST", "/health", 405),
        ("GET", "/", 404),
        ("POST", "/v1/score/../../etc/passwd", 404),
    ],
)
def test_other_methods_and_paths(server: Any, method: str, path: str, status: int) -> None:
    with httpx2.Client(trust_env=False) as client:
        error(client.request(method, server.url + path), status)


def test_garbage_is_refused_byte_by_byte(server: Any) -> None:
    """Every cut and hundreds of changes of a good body."""
    good = pack_request(request(source_id(server)))
    random = np.random.default_rng(0)
    bodies = [good[: int(n)] for n in random.integers(0, len(good), 30)]
    for _ in range(150):
        body = bytearray(good)
        for place in random.integers(0, len(good), int(random.integers(1, 4))):
            body[place] ^= int(random.integers(1, 256))
        bodies.append(bytes(body))
    bodies += [random.bytes(int(n)) for n in random.integers(0, 300, 30)]
    with client_of(server) as client:
        for body in bodies:
            if body != good:
                error(client.post("/v1/score", content=body), 400)


def test_heads_that_lie_are_refused_with_whole_digests(server: Any) -> None:
    """What a digest does not catch: each field of the head replaced by what cannot be."""
    head, body = unpack(pack_request(request(source_id(server))))
    odd: list[Any] = [None, -1, 1 << 70, 1e308, float("nan"), "x", [], [[]], {}, [[1, 2]], True]
    heads: list[Any] = [{}, {"documents": 3}]
    for key in head:
        heads += [{**head, key: value} for value in odd]
        heads.append({k: v for k, v in head.items() if k != key})
    for key in head["selection"]:
        heads += [
            {**head, "selection": {**head["selection"], key: value}}
            for value in odd
            if not (key == "temperatures" and value == []) and (key, value) != ("p", True)
        ]
    for shape in ([1 << 60, 0, []], [2, 1 << 60, [0, 1]], [20, 0, [5, 3]], [20, 0, [0, 99]], [1]):
        heads.append({**head, "documents": [shape, *head["documents"][1:]]})
    with client_of(server) as client:
        for lie in heads:
            reply = client.post("/v1/score", content=pack(lie, [bytes(body)]))
            assert reply.status_code in (400, 409), (lie, reply.text)
            error(reply, reply.status_code)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"documents": [np.int32([1, VOCAB]), np.int32([1, 2])]}, "expected ids of 0 to 39"),
        ({"documents": [np.int32([1, -1]), np.int32([1, 2])]}, "found -1 to 1"),
        ({"documents": [np.zeros(65, np.int32), np.int32([1, 2])]}, "at most 64 tokens"),
        ({"selection": selection(vocab_size=41)}, "vocabulary of 40; found 41"),
        ({"selection": selection(k=VOCAB + 1)}, "min_k <= k <= vocab_size"),
    ],
)
def test_what_the_teacher_does_not_know(server: Any, changes: Any, told: str) -> None:
    asked = request(source_id(server), **changes)
    asked = replace(asked, wanted=[np.ones(len(ids) - 1, dtype=bool) for ids in asked.documents])
    assert told in error(post(server, pack_request(asked)), 400)


def test_given_ids_beyond_the_vocabulary(server: Any) -> None:
    asked = request(source_id(server))
    rows = len(asked.documents[0]) - 1
    asked = replace(asked, given=[np.full((rows, 2), VOCAB, dtype=np.int32), None])
    assert "expected ids of 0 to 39" in error(post(server, pack_request(asked)), 400)


def test_another_teacher_is_expected(server: Any) -> None:
    told = error(post(server, pack_request(request("0" * 32))), 409)
    assert "0" * 32 in told and source_id(server) in told


def test_bodies_that_are_too_large(server: Any) -> None:
    told = error(post(server, b"x" * (LIMIT + 1)), 413)
    assert str(LIMIT) in told and "--max-body-bytes" in told


def test_chunked_bodies_are_counted(server: Any) -> None:
    """No length is declared, and the end never comes."""
    head = (
        "POST /v1/score HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
        f"authorization: Bearer {TOKEN}\r\n\r\n"
    ).encode()
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    found = raw(server, head + chunk * (LIMIT // 4096 + 1))
    assert found.startswith(b"HTTP/1.1 413 ")


def test_answers_that_would_be_too_large(server: Any) -> None:
    """Asked for by somebody who does not keep to the limits that the server tells."""
    texts = [np.zeros(64, dtype=np.int32)] * 150
    asked = request(
        source_id(server),
        selection=selection(k=VOCAB),
        documents=texts,
        wanted=[np.ones(63, dtype=bool)] * 150,
        given=[None] * 150,
    )
    assert "--max-answer-bytes" in error(post(server, pack_request(asked)), 413)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20000,
        b"",
    ],
)
def test_what_is_not_http(server: Any, data: bytes) -> None:
    found = raw(server, data)
    assert found == b"" or found.startswith(b"HTTP/1.1 400 ")


def test_a_body_that_breaks_off(server: Any) -> None:
    head = f"POST /v1/score HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n"
    found = raw(server, head.encode() + b"content-length: 5000\r\n\r\nonly this")
    assert b" 200 " not in found


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--host", "0.0.0.0"], "--insecure"),
        (["--host", "teacher.example"], "can be reached by others"),
        (["--port", 70000], "expected 0 to 65535"),
        (["--token", "two words"], "no spaces"),
        (["--token", ""], "at least one character"),
        (["--batch-tokens", 0], "at least 1"),
        (["--max-queue", 0], "at least 1"),
        (["--max-wait-ms", -1], "expected 0 to 10000"),
        (["--max-length", 1], "at least 2"),
        (["--threads", 0], "at least 1"),
        (["--max-body-bytes", 10], "at least 65536"),
        (["--load-in-4bit", "--load-in-8bit"], "exclude each other"),
        (["--device", "cpu", "--device-map", "auto"], "exclude each other"),
    ],
)
def test_settings_that_cannot_be_used(
    cachekd: Run, family: Family, flags: list[Any], told: str
) -> None:
    ran = cachekd("serve-teacher", "--teacher", family.teacher, *flags)
    assert ran.code == 2 and told in ran.err and ran.out == ""
    assert "two words" not in ran.err


def test_an_address_in_use(cachekd: Run, family: Family, server: Any) -> None:
    port = server.url.rsplit(":", 1)[1]
    ran = cachekd("serve-teacher", "--teacher", family.teacher, "--port", port)
    assert ran.code == 2 and "Choose another --port" in ran.err


def test_no_such_teacher(cachekd: Run) -> None:
    ran = cachekd("serve-teacher", "--teacher", "/nowhere", "--port", 0)
    assert ran.code == 1 and "no such model" in ran.err and ran.out == ""


def test_the_extra_is_named_where_it_is_missing(
    cachekd: Run, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    ran = cachekd("serve-teacher", "--teacher", family.teacher, "--port", 0)
    assert ran.code == 2 and "pip install 'cachekd[serve]'" in ran.err


def test_the_token_is_never_shown(
    cachekd: Run, family: Family, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    from cachekd.config import ServeConfig

    monkeypatch.setenv("CACHEKD_SERVE_TOKEN", TOKEN)
    for flags in (["--help"], ["--port", -1], ["--backend", "none"]):
        ran = cachekd("serve-teacher", "--teacher", family.teacher, *flags)
        assert TOKEN not in ran.out + ran.err
    assert TOKEN not in repr(ServeConfig(teacher="x", token=TOKEN))
    assert json.dumps(TOKEN) not in repr(connect)


@pytest.mark.parametrize("width", [1025, 10**6, 10**30, -1])
def test_a_few_bytes_cannot_ask_for_a_wide_array(width: int) -> None:
    """A document without wanted rows needs no bytes for its given ids, however many it names."""
    from cachekd.errors import DataError
    from cachekd.teachers._message import pack
    from cachekd.teachers._wire import unpack_request

    kept = {"k": 4, "p": 1.0, "min_k": 1, "min_prob": 0.0, "vocab_size": 40, "temperatures": []}
    head = {"source_id": "x", "selection": kept, "documents": [[2, width, []]]}
    with pytest.raises(DataError, match="given ids"):
        unpack_request(pack(head, [b"\0" * 8]))
