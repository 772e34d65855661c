"""Learning a prior: deterministic, valid for whatever rows there are, and worth its bytes."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from ragged import DIGEST, clusters, encoded, header, made_up

from cachekd.codecs._learn import _largest, learn_prior, rows_to_learn
from cachekd.codecs._priors import Prior, load_prior
from cachekd.codecs.packed import PackedCodec
from cachekd.types import TopKLogits


def packed_bytes(records: list[TopKLogits], prior: Prior | None) -> int:
    head = header(records[0].vocab_size, temperatures=(), prior=DIGEST if prior else None)
    codec = PackedCodec(head, prior)
    return sum(len(encoded(codec, record)[0]) for record in records)


def test_clusters_are_found_and_pay() -> None:
    records = clusters(20_000, kinds=5, rows=1500)
    learned = learn_prior(records[:12], 20_000, budget=4096)
    again = learn_prior(records[:12], 20_000, budget=4096)
    assert learned.dump() == again.dump(), "the same rows give the same prior"
    assert 5 <= learned.contexts <= rows_to_learn(4096) // 48
    kinds = {
        frozenset(record.ids[slice(*record.offsets[t : t + 2])].tolist())
        for record in records for t in range(record.rows)
    }  # fmt: skip
    found = {next((k for k in kinds if k >= set(v)), None) for v in learned.lists[:, :5].tolist()}
    assert found == kinds and len(kinds) == 5, "a context begins with tokens of one kind of row"
    unigram = learn_prior(records[:12], 20_000, budget=0)
    later = records[12:]
    assert packed_bytes(later, learned) < 0.9 * packed_bytes(later, unigram)
    assert packed_bytes(later, unigram) < 0.9 * packed_bytes(later, None)


@pytest.mark.parametrize("vocab", [1, 2, 300, 70_000])
@pytest.mark.parametrize("budget", [0, 8, 31, 32, 33, 300, 4096, 1 << 20])
@pytest.mark.parametrize("counts", [[], [0], [1], [0] * 400, [1, 0] * 200, [30] * 96, [3] * 700])
def test_any_rows_give_a_valid_prior(vocab: int, budget: int, counts: list[int]) -> None:
    records = [made_up(header(vocab), counts, style="equal")] if counts else []
    prior = learn_prior(records, vocab, budget=budget)
    assert load_prior("x", prior.dump()).dump() == prior.dump()
    assert all(len(set(tokens)) == prior.width for tokens in prior.lists.tolist())
    assert 2 * prior.lists.size <= max(budget, 0)
    if records:
        head = replace(header(vocab), prior=DIGEST)
        codec = PackedCodec(head, prior)
        found = codec.decode([encoded(codec, records[0])])[0]
        assert np.array_equal(np.sort(found.ids), np.sort(records[0].ids))


def test_the_unigram_is_the_mean_of_the_rows() -> None:
    records = [made_up(header(50), [50] * 40, seed=1)]
    prior = learn_prior(records, 50, budget=0)
    mean = np.bincount(records[0].ids, np.exp(records[0].logprobs.astype(float)), 50) / 40
    assert np.allclose(prior.unigram(), 0.975 * mean + 0.025 / 50, atol=2e-3)


def test_of_equal_masses_the_first_are_taken() -> None:
    mass = np.array([1.0, 3.0, 1.0, 2.0, 1.0])
    assert sorted(_largest(mass, 3).tolist()) == [0, 1, 3]
    assert sorted(_largest(mass, 5).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_learning_from_many_rows_takes_bounded_memory() -> None:
    vocab, rng = 150_000, np.random.default_rng(0)
    weights = 1 / np.arange(1, vocab + 1)
    draws = rng.choice(vocab, (16_384, 80), p=weights / weights.sum())
    ids = [np.unique(row)[:40] for row in draws]
    record = made_up(header(vocab), [len(row) for row in ids])
    record = replace(record, ids=np.concatenate(ids).astype(np.int32))
    tracemalloc.start()
    prior = learn_prior([record], vocab, budget=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert prior.contexts > 1 and peak < 400 << 20
