"""Scores that came over HTTP are the teacher's own, whoever else asks at the same time."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hosting import (
    VOCAB,
    Watched,
    assert_same,
    connect,
    documents,
    from_row,
    given_ids,
    selection,
    serving,
    serving_model,
    until,
)
from tiny import Family

from cachekd.config import ServeConfig
from cachekd.errors import TeacherError
from cachekd.plugins import find
from cachekd.serving.hosted import load_hosted
from cachekd.teachers.dummy import DummyTeacher


@pytest.mark.parametrize(
    "chosen",
    [
        selection(),
        selection(p=0.6, min_k=2, temperatures=(0.5, 2.0, 4.0)),
        selection(k=VOCAB, temperatures=()),
        selection(min_prob=0.1),
    ],
)
def test_the_numbers_are_the_teachers_own(chosen: Any) -> None:
    texts = documents(7)
    wanted = [None if i == 3 else from_row(ids_L, i) for i, ids_L in enumerate(texts)]
    with serving(Watched()) as server:
        found = connect(server).score(texts, 999, chosen, wanted)
    assert_same(found, DummyTeacher().score(texts, 20, chosen, wanted))
    assert sum(len(target.ids) for target in found) > 100


def test_rows_may_be_wanted_anywhere() -> None:
    ids_L = documents(1, longest=20, seed=3)[0]
    wanted = [np.arange(len(ids_L) - 1) % 3 == 1]
    with serving(Watched()) as server:
        found = connect(server).score([ids_L], 0, selection(), wanted)
    assert_same(found, DummyTeacher().score([ids_L], 20, selection(), wanted))
    assert (np.diff(found[0].offsets) > 0).tolist() == wanted[0].tolist()


def test_given_ids_arrive_with_the_rows_they_belong_to() -> None:
    texts = documents(5, seed=1)
    wanted = [from_row(ids_L, 1) for ids_L in texts]
    given = [None if i == 2 else given_ids(mask, 3, seed=i) for i, mask in enumerate(wanted)]
    teacher = Watched()
    with serving(teacher) as server:
        found = connect(server).score(texts, 0, selection(k=2), wanted, given)
    assert_same(found, Watched().score(texts, 20, selection(k=2), wanted, given))
    counts = np.concatenate([np.diff(target.offsets) for target in found])
    assert counts.max() > 2, "given ids must be entries beyond the head"


def test_a_model_gives_what_it_gives_in_process(family: Family) -> None:
    config = ServeConfig(teacher=str(family.teacher), threads=1)
    texts = documents(4, vocab=family.vocab, longest=30)
    chosen = selection(k=16, vocab_size=family.vocab)
    wanted = [from_row(ids_L, 1) for ids_L in texts]
    with serving_model(family.teacher) as server:
        known = load_hosted(config)
        client = connect(server, tokenizer=known.source["tokenizer"], vocab_size=known.vocab_size)
        found = client.score(texts, 0, chosen, wanted)
        assert client.source == known.source
        assert client.context_length == known.context_length == 128
        assert client.numerics["torch"] and client.numerics["attn_implementation"] == "sdpa"
    padded = max(map(len, texts))
    order = np.argsort([-len(ids_L) for ids_L in texts], kind="stable")
    own = known.teacher.score([texts[i] for i in order], padded, chosen, [wanted[i] for i in order])
    assert_same([found[i] for i in order], own)


def test_sixteen_clients_get_their_own_answers_from_merged_batches() -> None:
    teacher = Watched()
    teacher.free.clear()
    texts = [documents(3, seed=seed) for seed in range(16)]
    # Two selections: documents of like selection are scored together.
    chosen = [selection(k=4 + 4 * (seed % 2)) for seed in range(16)]
    with serving(teacher, batch_tokens=4096) as server, ThreadPoolExecutor(17) as pool:

        def ask(seed: int) -> Any:
            return connect(server).score(texts[seed], 0, chosen[seed], [None] * 3)

        first = pool.submit(connect(server).score, documents(1), 0, selection(), [None])
        until(lambda: teacher.calls)  # the teacher is busy with it
        asked = [pool.submit(ask, seed) for seed in range(16)]
        until(lambda: server.queued == 16)
        teacher.free.set()
        found = [answer.result() for answer in asked]
        first.result()
    for seed in range(16):
        expected = DummyTeacher().score(texts[seed], 20, chosen[seed], [None] * 3)
        assert_same(found[seed], expected)
    assert teacher.calls == [1, 24, 24]


def test_batches_stay_within_their_budget() -> None:
    teacher = Watched()
    texts = documents(12, seed=5)
    with serving(teacher, batch_tokens=40) as server:
        found = connect(server).score(texts, 0, selection(), [None] * 12)
    assert_same(found, DummyTeacher().score(texts, 20, selection(), [None] * 12))
    assert sum(teacher.calls) == 12
    assert all(rows == 1 or rows * 2 <= 40 for rows in teacher.calls) and len(teacher.calls) > 3


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TeacherError("NaN or infinite logits in 1 of 3 rows"), "NaN or infinite"),
        (MemoryError("no room for 8 GB"), "out of memory: no room for 8 GB"),
        (RuntimeError("a kernel of the model failed"), "a kernel of the model failed"),
    ],
)
def test_a_document_that_fails_fails_its_own_request_alone(error: Exception, told: str) -> None:
    teacher = Watched()
    teacher.bad_token, teacher.error = 7, error
    good = [np.where(ids_L == 7, 8, ids_L).astype(np.int32) for ids_L in documents(4)]
    bad = [good[0], np.int32([1, 7, 2]), good[1]]
    teacher.free.clear()
    with serving(teacher) as server, ThreadPoolExecutor(3) as pool:
        first = pool.submit(connect(server).score, good[:1], 0, selection(), [None])
        until(lambda: teacher.calls)
        others = pool.submit(connect(server).score, good, 0, selection(), [None] * 4)
        failing = pool.submit(connect(server).score, bad, 0, selection(), [None] * 3)
        until(lambda: server.queued == 2)
        teacher.free.set()
        with pytest.raises(TeacherError, match=r"document 1 .3 tokens. cannot be scored") as caught:
            failing.result()
        assert told in str(caught.value)
        assert_same(others.result(), DummyTeacher().score(good, 20, selection(), [None] * 4))
        first.result()
        again = connect(server).score(good, 0, selection(), [None] * 4)
        assert_same(again, others.result())


def test_what_is_larger_than_the_limits_goes_in_parts() -> None:
    teacher = Watched()
    texts = documents(400, longest=60)
    given = [given_ids(np.ones(len(ids_L) - 1, dtype=bool), 4, seed=0) for ids_L in texts]
    with serving(teacher, max_body_bytes=1 << 16, max_answer_bytes=1 << 20) as server:
        found = connect(server).score(texts, 0, selection(), [None] * 400, given)
        assert server.answered >= 5
    assert_same(found, Watched().score(texts, 60, selection(), [None] * 400, given))


def test_a_document_beyond_the_limits_is_refused_by_the_client() -> None:
    with serving(Watched(), max_answer_bytes=1 << 16) as server:
        client = connect(server)
        huge = np.zeros(5000, dtype=np.int32)
        with pytest.raises(TeacherError, match="--max-answer-bytes"):
            client.score([huge], 0, selection(k=VOCAB), [None])
        assert len(client.score(documents(2), 0, selection(), [None] * 2)) == 2


def test_nothing_is_done_for_a_client_that_went_away() -> None:
    teacher = Watched()
    teacher.free.clear()
    with serving(teacher) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(connect(server).score, documents(1), 0, selection(), [None])
        until(lambda: teacher.calls)
        impatient = connect(server, timeout=0.2, patience=0.1)
        with pytest.raises(TeacherError, match="no answer"):
            impatient.score(documents(2), 0, selection(), [None] * 2)
        until(lambda: server.held == 1)  # its request was given up
        teacher.free.set()
        first.result()
        connect(server).score(documents(3), 0, selection(), [None] * 3)
    assert teacher.calls == [1, 3]


def _ask(url: str, seed: int) -> Any:
    return connect(url).score(documents(5, seed=seed), 0, selection(), [None] * 5)


def test_two_processes_share_a_server() -> None:
    context = multiprocessing.get_context("spawn")
    with serving(Watched()) as server, context.Pool(2) as pool:
        found = pool.starmap(_ask, [(server.url, seed) for seed in range(4)])
    for seed, targets in enumerate(found):
        expected = DummyTeacher().score(documents(5, seed=seed), 20, selection(), [None] * 5)
        assert_same(targets, expected)


def test_a_client_can_be_used_after_a_fork() -> None:
    """The child has a connection of its own: both get whole answers."""
    with serving(Watched()) as server:
        client = connect(server)
        before = client.score(documents(2), 0, selection(), [None] * 2)
        connection = client._connection
        own = connection._client()
        connection._clients[-1] = connection._clients.pop(os.getpid())  # as a child finds it
        again = client.score(documents(2), 0, selection(), [None] * 2)
        assert connection._client() is not own
    assert_same(again, before)


def test_the_plugins_are_found_by_their_file_names() -> None:
    assert find("teachers", "served").connect and find("teachers", "vllm").connect
