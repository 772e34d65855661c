"""Priors as files: what is written is read; damage and hostile heads are refused."""

from __future__ import annotations

import pickle
import struct
import tracemalloc

import numpy as np
import pytest
import reference_records as reference
import zstandard
from ragged import header, made_up, prior_of

from cachekd.codecs._priors import JUDGED, Prior, load_prior
from cachekd.errors import CorruptCache

UNUSED_BIT = 8 * 24 + 4 * 8 + 4  # of the frame header: zstd's decoders must ignore it


def same(left: Prior, right: Prior) -> bool:
    return all(
        np.array_equal(getattr(left, name), getattr(right, name))
        and getattr(left, name).dtype == getattr(right, name).dtype
        for name in ("log_unigram", "lists", "table")
    )


@pytest.mark.parametrize(
    ("vocab", "contexts", "width"), [(1, 0, 0), (1, 1, 1), (7, 3, 7), (300, 0, 0), (70_000, 4, 90)]
)
def test_what_is_written_is_read(vocab: int, contexts: int, width: int) -> None:
    prior = prior_of(vocab, contexts, width)
    data = prior.dump()
    found = load_prior("x", data)
    assert same(found, prior) and found.dump() == data
    assert same(pickle.loads(pickle.dumps(prior)), prior)
    assert abs(found.unigram().sum() - 1) < 1e-5 and len(found.unigram()) == vocab
    theirs = reference.parse_prior(data)
    assert theirs["lists"] == prior.lists.tolist()
    assert theirs["by_unigram"] == prior.table[prior.lists.size :].tolist()


def test_no_flipped_bit_gives_another_prior() -> None:
    prior = prior_of(20, 2, 5)
    data = prior.dump()
    unnoticed = []
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = load_prior("x", bytes(damaged))
        except CorruptCache:
            continue
        assert same(found, prior)
        unnoticed.append(bit)
    assert unnoticed in ([], [UNUSED_BIT])
    for end in range(len(data)):
        with pytest.raises(CorruptCache):
            load_prior("x", data[:end])
    with pytest.raises(CorruptCache):
        load_prior("x", data + b"\0")


def file_of(vocab: int, contexts: int, width: int, content: bytes) -> bytes:
    head = struct.pack("<8sIIII", b"CKDPRIOR", 1, vocab, contexts, width)
    return head + zstandard.ZstdCompressor(write_checksum=True).compress(content)


@pytest.mark.parametrize(
    ("logs", "ids"),
    [
        ([0.0, 0.0], [0, 1]), ([-np.inf, 0.0], [0, 1]), ([np.nan, 0.0], [0, 1]),
        ([-60000.0, -60000.0], [0, 1]), ([-0.7, -0.7], [0, 2]), ([-0.7, -0.7], [1, 1]),
    ],
)  # fmt: skip
def test_impossible_values_are_refused(logs: list[float], ids: list[int]) -> None:
    def content(logs: list[float], ids: list[int]) -> bytes:
        return np.array(logs, "<f2").tobytes() + bytes(ids) + bytes(4)

    assert load_prior("x", file_of(2, 1, 2, content([-0.7, -0.7], [1, 0]))).lists.tolist() == [
        [1, 0]
    ]
    with pytest.raises(CorruptCache, match=r"impossible|twice"):
        load_prior("x", file_of(2, 1, 2, content(logs, ids)))


@pytest.mark.parametrize(
    ("vocab", "contexts", "width"),
    [
        (1 << 24, 4096, 1 << 24), (1 << 24, 4096, 1 << 16), ((1 << 24) + 1, 0, 0), (0, 0, 0),
        (9, 4097, 1), (9, 1, 10), (9, 0, 3), (9, 3, 0), (1 << 24, 1, 1 << 24), (1 << 31, 1, 1),
    ],
)  # fmt: skip
def test_hostile_heads_take_no_memory(vocab: int, contexts: int, width: int) -> None:
    data = file_of(vocab, contexts, width, bytes(1000))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCache):
            load_prior("x", data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_row_gets_the_cheapest_context() -> None:
    """Against a loop over contexts and the first entries of each row."""
    prior = prior_of(300, 6, 50)
    record = made_up(header(300), [0, 3, 60, 1, 0, 20, 0], seed=2)
    chosen = prior.choose(record.offsets, record.ids).tolist()
    absent = round(8 * np.log2(600))
    for t, context in enumerate(chosen):
        ids = record.ids[slice(*record.offsets[t : t + 2])][:JUDGED].tolist()
        costs = [
            sum(round(8 * np.log2(tokens.index(v) + 2)) if v in tokens else absent for v in ids)
            for tokens in prior.lists.tolist()
        ]
        assert costs[context] == min(costs) and costs.index(min(costs)) == context


def test_ranks_lead_back_to_tokens() -> None:
    for prior in (prior_of(300, 6, 50), prior_of(300, 0, 0)):
        rng = np.random.default_rng(0)
        contexts = rng.integers(0, max(1, prior.contexts), 200)
        ids = rng.integers(0, 300, 200).astype(np.int32)
        outside, rank = prior.rank(contexts, ids)
        listed = np.where(outside | (prior.contexts == 0), prior.lists.size, contexts * prior.width)
        assert np.array_equal(prior.table[listed + rank], ids)
        assert outside.any() == (prior.contexts > 0)
