"""A samples shard made of flat arrays has the bytes of one made value by value."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from cachekd.data.digests import sample_digest
from cachekd.store.samples import keys_of, sample_ids, spans_of, write_samples
from cachekd.store.tables import SAMPLES, write_table
from cachekd.types import Sample


def made(count: int, prompts: str) -> list[Sample]:
    random = np.random.default_rng(count)
    samples = []
    for row in range(count):
        length = int(random.integers(2, 30))
        prompt = {"none": None, "all": 1, "some": [None, 0, 2][row % 3]}[prompts]
        samples.append(
            Sample(
                input_ids=random.integers(0, 3, length).astype(np.int32),
                roles=random.integers(0, 6, length).astype(np.uint8),
                prompt_length=prompt,
                domain=["", "a", "ö" * 9][row % 3],
                weight=0.5 * (row % 2),
                source="data.jsonl",
                row=row,
            )
        )
    return samples + samples[: count // 3]


@pytest.mark.parametrize("prompts", ["none", "all", "some"])
@pytest.mark.parametrize("count", [0, 1, 7, 9000])
def test_the_bytes_are_those_of_plain_lists(count: int, prompts: str) -> None:
    samples = made(count, prompts)
    keys = [hashlib.blake2b(s.input_ids.tobytes(), digest_size=16).digest() for s in samples]
    ids, copies = [], Counter[bytes]()
    for sample, key in zip(samples, keys, strict=True):
        parts = (key, sample.roles, sample.prompt_length, sample.domain, sample.weight)
        first = sample_digest(*parts, copy=0)
        ids.append(sample_digest(*parts, copy=copies[first]))
        copies[first] += 1
    spans = [spans_of(sample.roles) for sample in samples]
    plain = {
        "sample_id": ids,
        "key": keys,
        "n_tokens": [len(sample.input_ids) for sample in samples],
        "prompt_length": [sample.prompt_length for sample in samples],
        "span_roles": [roles for roles, _ in spans],
        "span_ends": [ends for _, ends in spans],
        "domain": [sample.domain for sample in samples],
        "weight": [sample.weight for sample in samples],
        "source": [sample.source for sample in samples],
        "source_row": [sample.row for sample in samples],
        "order": range(5, 5 + len(samples)),
    }
    packed = keys_of(samples)
    assert packed == keys and sample_ids(samples, packed) == ids
    shard = write_samples(iter(samples), keys, ids, range(5, 5 + len(samples)))
    assert shard.equals(write_table(plain, SAMPLES, {"cachekd": "samples"}))
