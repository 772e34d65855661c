"""Warnings about a reference cache that is too coarse for a student that starts at it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeCache, record

from cachekd.objectives import Needs
from cachekd.training.caveats import warn_of_coarse_start


def _cache(name: str, values: str, k: int, vocab: int = 1000) -> Any:
    cache = FakeCache([record([1, 2, 3])], name=name, vocab=vocab)
    selection = {"kind": "top_p", "k": k, "p": 0.99, "min_k": 1}
    capture = {**cache.identity.capture, "logprobs": {"values": values}, "selection": selection}
    cache.identity = replace(cache.identity, capture=capture)
    return cache


@pytest.mark.parametrize(
    ("values", "k", "vocab", "words"),
    [
        ("float16", 64, 1000, ()),
        ("float16", 48, 48, ()),
        ("sqrt", 64, 1000, ("levels (sqrt)",)),
        ("log", 32, 1000, ("levels (log)", "at most 32 entries")),
    ],
)
def test_only_the_cache_that_the_student_starts_at(
    values: str,
    k: int,
    vocab: int,
    words: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caches = [_cache("expert", "log", 8), _cache("reference", values, k, vocab)]
    warn_of_coarse_start(Needs(start="reference"), caches)
    assert len(caplog.messages) == len(words)
    for message, word in zip(caplog.messages, words, strict=True):
        assert "'reference'" in message and word in message
    caplog.clear()
    warn_of_coarse_start(Needs(), caches)
    assert not caplog.messages
