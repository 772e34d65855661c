"""Warnings about a reference cache that is too coarse for a student that starts at it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeCache, documents, record

from cachekd.objectives import Needs
from cachekd.training import caveats
from cachekd.training.caveats import warn_of_coarse_start
from cachekd.training.loader import CacheDataset


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


def _said(caplog: pytest.LogCaptureFixture, warn: Any, *arguments: Any) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn(*arguments)
    return caplog.text


def test_heads_of_less_mass_than_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    short = FakeCache([record(ids, top_p=0.5) for ids in documents(6)], name="short")
    whole = FakeCache([record(ids) for ids in documents(6)])
    text = _said(caplog, caveats.warn_of_short_heads, Needs(mass=0.99), [whole, short])
    assert "'short': about 1" in text and "short_rows" in text and "'fake'" not in text
    assert not _said(caplog, caveats.warn_of_short_heads, Needs(), [short])
    assert not _said(caplog, caveats.warn_of_short_heads, Needs(mass=0.99), [whole])


def test_samples_that_are_left_out_or_cut(caplog: pytest.LogCaptureFixture) -> None:
    records = [record([1, 2, 3, 4]), record([5, 6, 7], prompt_length=3)]
    dataset = CacheDataset(FakeCache(records), max_length=3)
    text = _said(caplog, caveats.warn_of_samples, Needs(), dataset)
    assert "1 samples are trained on; left out: 1 no trained row" in text
    assert "1 samples are cut to 3 tokens" in text
    assert not _said(caplog, caveats.warn_of_samples, Needs(), CacheDataset(FakeCache(records[:1])))


def test_routing_that_routes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    records = [replace(record(ids), domain="law") for ids in documents(4)]
    caches = [FakeCache(records, name=name, capture_id=name) for name in ("expert", "reference")]
    dataset = CacheDataset(caches, route=())
    text = _said(caplog, caveats.warn_of_samples, Needs(routed=True), dataset)
    assert "every sample learns from the cache 'expert'" in text and "--expert-domains" in text
