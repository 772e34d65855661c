"""A served dummy teacher on a real socket, and clients of it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.config import ServeConfig
from cachekd.serving.hosted import Hosted, load_hosted
from cachekd.serving.server import TeacherServer, bind
from cachekd.teachers import RemoteConfig, Selection
from cachekd.teachers.dummy import DummyTeacher, dummy_logits
from cachekd.teachers.served import ServedTeacher
from cachekd.types import Int32, TopKLogits

VOCAB = 40


class Watched(DummyTeacher):
    """The dummy teacher, which counts its calls and can be held or made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.bad_token = -1
        self.error: Exception = ValueError("never raised")

    def score(
        self,
        documents: Sequence[Int32],
        padded_length: int,
        selection: Selection,
        wanted: Sequence[NDArray[np.bool_] | None],
        given: Sequence[Int32 | None] | None = None,
    ) -> list[TopKLogits]:
        self.calls.append(len(documents))
        self.free.wait()
        if any((ids_L == self.bad_token).any() for ids_L in documents):
            raise self.error
        return super().score(documents, padded_length, selection, wanted, given)


class Slow(DummyTeacher):
    """Takes a moment, and leaves a file when it has begun: for servers of another process."""

    @staticmethod
    def load(config: Any, facts: Any, threads: int) -> Slow:
        return Slow()

    def score(self, *args: Any) -> list[TopKLogits]:
        Path(os.environ["STARTED"]).touch()
        time.sleep(0.5)
        return super().score(*args)


def dense(ids_L: Int32, vocab: int = VOCAB) -> NDArray[np.float64]:
    """Log-probabilities of the dummy teacher, [L-1, V]."""
    logits = dummy_logits(ids_L, vocab)[:-1].astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def given_ids(mask: NDArray[np.bool_], count: int, seed: int) -> Int32:
    """Random ids for the wanted rows, [R, J]."""
    random = np.random.default_rng(seed)
    return random.integers(0, VOCAB, (int(mask.sum()), count)).astype(np.int32)


def hosted(teacher: Any, **source: Any) -> Hosted:
    facts = {"weights": "dummy", "tokenizer": "tokenizer", "vocab_size": VOCAB, **source}
    return Hosted(teacher=teacher, name="dummy", source=facts, context_length=64, attention="sdpa")


@contextmanager
def serving(
    teacher: Any, *, source: dict[str, Any] | None = None, **settings: Any
) -> Iterator[Any]:
    """A server of this teacher; gives it with its URL."""
    config = ServeConfig(teacher="dummy", **{"port": 0, **settings})
    known = hosted(teacher, **(source or {}))
    with bind(config) as listener, TeacherServer(known, config, listener) as server:
        yield server


@contextmanager
def serving_model(folder: Path, **settings: Any) -> Iterator[Any]:
    """A server of a model folder."""
    config = ServeConfig(teacher=str(folder), **{"port": 0, "threads": 1, **settings})
    with bind(config) as listener, TeacherServer(load_hosted(config), config, listener) as server:
        yield server


def connect(server: Any, **changes: Any) -> ServedTeacher:
    settings = {
        "url": server if isinstance(server, str) else server.url,
        "token": None,
        "timeout": 30.0,
        "patience": 10.0,
        "tokenizer": "tokenizer",
        "vocab_size": VOCAB,
    }
    return ServedTeacher.connect(RemoteConfig(**{**settings, **changes}))


def selection(**changes: Any) -> Selection:
    settings = {"k": 8, "p": 1.0, "min_k": 1, "vocab_size": VOCAB, "temperatures": (2.0,)}
    return Selection(**{**settings, **changes})


def documents(count: int, seed: int = 0, longest: int = 20, vocab: int = VOCAB) -> list[Int32]:
    random = np.random.default_rng(seed)
    lengths = random.integers(2, longest + 1, count)
    return [random.integers(0, vocab, n).astype(np.int32) for n in lengths]


def from_row(ids_L: Int32, row: int) -> NDArray[np.bool_]:
    return np.arange(len(ids_L) - 1) >= row


def assert_same(found: Sequence[TopKLogits], expected: Sequence[TopKLogits]) -> None:
    """Equal to the last bit."""
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        for name in ("offsets", "ids", "logprobs", "tail", "next_logprob", "entropy"):
            a, b = getattr(left, name), getattr(right, name)
            assert a.dtype == b.dtype and np.array_equal(a, b), name
        assert left.lognorm.keys() == right.lognorm.keys() and left.weights is None
        assert all(np.array_equal(left.lognorm[t], right.lognorm[t]) for t in right.lognorm)
        assert left.vocab_size == right.vocab_size


def until(condition: Any) -> None:
    """Wait for something that must come; the test's own time limit ends it."""
    while not condition():
        time.sleep(0.005)
