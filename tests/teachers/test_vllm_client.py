"""A teacher behind a vLLM server: rows shifted once, heads exact, and what it cannot tell said."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from fake_vllm import FakeVLLM, running
from faulty import proxy
from hosting import VOCAB, dense, documents, from_row, given_ids, selection

from cachekd.errors import ConfigError, MismatchError, TeacherError
from cachekd.teachers import RemoteConfig, _http
from cachekd.teachers.dummy import DummyTeacher
from cachekd.teachers.vllm import VLLMTeacher

PLAIN = selection(temperatures=())


def connect(server: Any, **changes: Any) -> VLLMTeacher:
    settings = {
        "url": server.url,
        "token": None,
        "timeout": 30.0,
        "patience": 10.0,
        "tokenizer": "tokenizer",
        "vocab_size": VOCAB,
    }
    return VLLMTeacher.connect(RemoteConfig(**{**settings, **changes}))


@pytest.mark.parametrize("chosen", [PLAIN, selection(p=0.6, min_k=2, temperatures=())])
def test_heads_are_those_of_the_teacher(chosen: Any) -> None:
    texts = documents(6)
    wanted = [from_row(ids_L, 1) for ids_L in texts]
    with running(FakeVLLM()) as server:
        found = connect(server).score(texts, 0, chosen, wanted)
    own = DummyTeacher().score(texts, 20, chosen, wanted)
    for left, right, mask in zip(found, own, wanted, strict=True):
        assert np.array_equal(left.offsets, right.offsets) and np.array_equal(left.ids, right.ids)
        np.testing.assert_allclose(left.logprobs, right.logprobs, atol=2e-6)
        np.testing.assert_allclose(left.next_logprob, right.next_logprob, atol=2e-6)
        np.testing.assert_allclose(np.exp(left.tail), np.exp(right.tail), atol=2e-6)
        assert (left.entropy <= right.entropy + 1e-5).all() and (left.entropy[mask] > 0).all()
        assert left.lognorm.keys() == {1.0} and left.weights is None


def test_entropy_is_that_of_head_and_tail() -> None:
    (ids_L,) = documents(1, seed=3)
    with running(FakeVLLM()) as server:
        (found,) = connect(server).score([ids_L], 0, PLAIN, [None])
    best = -np.sort(-np.exp(dense(ids_L)), axis=1)[:, :8]
    whole = np.concatenate([best, 1 - best.sum(axis=1, keepdims=True)], axis=1)
    np.testing.assert_allclose(found.entropy, -(whole * np.log(whole)).sum(axis=1), rtol=1e-5)


def test_given_ids_are_entries() -> None:
    texts = documents(3, seed=2)
    wanted = [from_row(ids_L, 1) for ids_L in texts]
    given = [given_ids(mask, 3, seed=i) for i, mask in enumerate(wanted)]
    with running(FakeVLLM()) as server:
        found = connect(server).score(texts, 0, PLAIN, wanted, given)
    own = DummyTeacher().score(texts, 20, PLAIN, wanted, given)
    for left, right in zip(found, own, strict=True):
        assert np.array_equal(left.offsets, right.offsets) and np.array_equal(left.ids, right.ids)
        np.testing.assert_allclose(left.logprobs, right.logprobs, atol=2e-6)
        np.testing.assert_allclose(np.exp(left.tail), np.exp(right.tail), atol=2e-6)


def test_given_ids_are_refused_where_the_server_does_not_score_them() -> None:
    (ids_L,) = documents(1)
    given = [given_ids(np.ones(len(ids_L) - 1, dtype=bool), 2, seed=0)]
    refused = pytest.raises(TeacherError, match="does not score given ids")
    with running(FakeVLLM(given=False)) as server, refused:
        connect(server).score([ids_L], 0, PLAIN, [None], given)


def test_the_cap_of_the_engine_is_named() -> None:
    with running(FakeVLLM()) as server, pytest.raises(TeacherError, match="--max-logprobs 32"):
        connect(server).score(documents(1), 0, selection(k=32, temperatures=()), [None])


def test_other_temperatures_are_refused() -> None:
    refused = pytest.raises(ConfigError, match=r"no log-normaliser at 2\.0")
    with running(FakeVLLM()) as server, refused:
        connect(server).score(documents(1), 0, selection(), [None])


def test_who_it_is_and_what_cannot_be_proven(caplog: pytest.LogCaptureFixture) -> None:
    with running(FakeVLLM()) as server, caplog.at_level(logging.WARNING):
        client = connect(server, url=server.url + "/v1")
    assert client.source == {
        "engine": "vllm",
        "model": "org/teacher",
        "root": "/models/teacher",
        "version": "0.33.0",
        "tokenizer": "tokenizer",
        "vocab_size": VOCAB,
    }
    assert client.context_length == 63
    assert "cannot prove the weights" in caplog.text


def test_a_vocabulary_that_the_server_does_not_know() -> None:
    with running(FakeVLLM()) as server, pytest.raises(MismatchError, match="out of vocabulary"):
        connect(server, vocab_size=VOCAB + 1)


def test_padding_of_the_embedding_is_tail_and_more_is_another_tokenizer() -> None:
    texts = documents(2)
    with running(FakeVLLM(padding=1e-4)) as server:
        found = connect(server).score(texts, 0, PLAIN, [None] * 2)
        assert max(int(target.ids.max()) for target in found) < VOCAB
    refused = pytest.raises(MismatchError, match="ids beyond the student's vocabulary of 40")
    with running(FakeVLLM(padding=0.05)) as server, refused:
        connect(server).score(texts, 0, selection(k=1, temperatures=()), [None] * 2)


def test_values_that_are_no_log_probabilities() -> None:
    with running(FakeVLLM()) as server:
        client = connect(server)
        server.scale = 0.1
        with pytest.raises(TeacherError, match="raw_logprobs"):
            client.score(documents(1), 0, PLAIN, [None])


def test_another_engine_after_a_break_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http, "_FIRST_PAUSE", 0.002)
    texts = documents(2)
    with running(FakeVLLM()) as server, proxy(server.url) as between:
        client = connect(between)
        between.plan = ["reset"]
        assert len(client.score(texts, 0, PLAIN, [None] * 2)) == 2
        between.plan = ["reset"]
        server.version = "0.34.0"
        with pytest.raises(MismatchError, match=r"version: '0\.33\.0' / '0\.34\.0'"):
            client.score(texts, 0, PLAIN, [None] * 2)


def test_something_else_answers_there() -> None:
    with running(FakeVLLM()) as server, pytest.raises(TeacherError, match="refused with 404"):
        connect(server, url=server.url + "/elsewhere")
