"""Made-up caches of any size, written fast: every key and token id is another, targets repeat.

The encoded targets of eight documents are made once and written under new token ids into
every shard, so that a cache of 10 GB takes about as long as its bytes. What a reader does (digests
of whole shards, Parquet, decoding) costs the same as with targets that differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cachekd.codecs import CodecHeader
from cachekd.data.digests import bytes_digest, json_id, sample_key
from cachekd.data.packed import Keys
from cachekd.plugins import find
from cachekd.store.identity import Identity, capture_id
from cachekd.store.identity_files import write_identity
from cachekd.store.io import Location
from cachekd.store.layout import plan_name, samples_name, shard_name, unit_name
from cachekd.store.plan import Plan, PlannedBatch
from cachekd.store.samples import sample_ids, write_samples
from cachekd.store.seal import seal
from cachekd.store.shards import ShardFacts
from cachekd.store.state import UnitRecord
from cachekd.store.tables import LOGITS, footer_bytes, write_table
from cachekd.types import Role, Sample, TopKLogits

_BLOCK = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a cache: shards, documents of each, their tokens, and what a row keeps."""

    shards: int
    documents: int
    tokens: int
    vocab: int = 32_768
    k: int = 64
    top_p: float = 1.0
    values: str = "float16"


def targets(rows: int, shape: Shape, rng: np.random.Generator) -> TopKLogits:
    """Power laws of the rank with a random exponent a row, cut at k or at a mass."""
    exponent_N1 = rng.uniform(0.8, 3.0, (rows, 1))
    log_NV = -exponent_N1 * np.log(np.arange(1, shape.vocab + 1))
    log_NV -= np.logaddexp.reduce(log_NV, 1, keepdims=True)
    head_NK = log_NV[:, : shape.k]
    kept_NK = np.cumsum(np.exp(head_NK), 1) - np.exp(head_NK) < shape.top_p
    # A step that has no factor with V in common gives ids that differ.
    first_N1, step_N1 = rng.integers(0, shape.vocab, (rows, 1)), 2 * rng.integers(1, 99, (rows, 1))
    ids_NK = (first_N1 + (step_N1 + 1) * np.arange(shape.k)) % shape.vocab
    mass_N = np.where(kept_NK, np.exp(head_NK), 0).sum(1)
    return TopKLogits(
        offsets=np.concatenate([[0], np.cumsum(kept_NK.sum(1))]),
        ids=ids_NK[kept_NK].astype(np.int32),
        logprobs=head_NK[kept_NK].astype(np.float32),
        weights=None,
        tail=np.log(np.maximum(1 - mass_N, 1e-12)).astype(np.float32),
        next_logprob=head_NK[:, 0].astype(np.float32),
        lognorm={1.0: np.zeros(rows, np.float32)},
        entropy=-(np.exp(log_NV) * log_NV).sum(1).astype(np.float32),
        vocab_size=shape.vocab,
    )


def _identity(shape: Shape) -> Identity:
    source: dict[str, Any] = {"weights": "made-up", "tokenizer": "made-up"}
    source |= {"vocab_size": shape.vocab, "adapter": None, "dtype": "float32"}
    selection = {"kind": "top_p", "k": shape.k, "p": shape.top_p, "min_k": 1}
    capture = {"rows": "all", "temperatures": [1.0], "selection": selection}
    capture |= {"logprobs": {"values": shape.values}, "attn_implementation": "eager"}
    source_id = json_id(source)
    return Identity(
        source_id=source_id,
        source=source,
        capture_id=capture_id(source_id, capture),
        capture=capture,
        provenance={"teacher": "made-up", "revision": None, "adapter": None},
    )


def _samples(shape: Shape, shard: int) -> list[Sample]:
    rng = np.random.default_rng([7, shard])
    ids_PL = rng.integers(0, shape.vocab, (shape.documents, shape.tokens)).astype(np.int32)
    roles = np.full(shape.tokens, Role.ASSISTANT, np.uint8)
    roles[: shape.tokens // 4] = Role.USER
    return [
        Sample(input_ids=ids_L, roles=roles, source="made-up", row=i)
        for i, ids_L in enumerate(ids_PL)
    ]


def write_cache(folder: Path, shape: Shape) -> int:
    """A sealed cache; the bytes of its shards."""
    location, identity = Location(str(folder)), _identity(shape)
    header = CodecHeader(
        codec="packed", vocab_size=shape.vocab, values=shape.values, temperatures=()
    )
    rng = np.random.default_rng(0)
    block = [targets(shape.tokens - 1, shape, rng) for _ in range(min(_BLOCK, shape.documents))]
    encode = find("codecs", "packed")(header, None).encode
    encoded = [encode(one) for one in block]
    write_identity(location, identity)
    all_keys, all_samples = [], []
    facts = []
    for shard in range(shape.shards):
        samples = _samples(shape, shard)
        keys = Keys.of(sample_key(sample.input_ids) for sample in samples)
        part = write_samples(samples, keys, sample_ids(samples, keys), range(len(samples)))
        location.create(samples_name(bytes_digest(part)), part)
        all_samples.append(bytes_digest(part))
        all_keys.append(keys)
        facts.append(_write_shard(location, identity, header, samples, keys, block, encoded))
    plan = Plan(
        run="made-up",
        capture_id=identity.capture_id,
        sequence=0,
        keys=Keys.joined(all_keys),
        units=tuple(_units(shape)),
        threads=1,
        samples=tuple(all_samples),
        skipped={},
        changed={},
    )
    digest, data = plan.dump()
    location.create(plan_name(digest), data)
    for number, shard_facts in enumerate(facts):
        record = UnitRecord(plan=digest, number=number, shard=shard_facts, numerics={})
        location.create(unit_name(digest, number), record.dump(plan.unit_keys(number), {}))
    return seal(location).totals["bytes"]


def _units(shape: Shape) -> Iterator[tuple[PlannedBatch, ...]]:
    for shard in range(shape.shards):
        yield (PlannedBatch(shard * shape.documents, shape.documents, shape.tokens),)


def _write_shard(
    location: Location,
    identity: Identity,
    header: CodecHeader,
    samples: list[Sample],
    keys: Keys,
    block: list[TopKLogits],
    encoded: list[bytes],
) -> ShardFacts:
    order = np.argsort(keys.array, kind="stable").tolist()
    at = [i % len(block) for i in order]
    data = write_table(
        {
            "key": [keys[i] for i in order],
            "n_tokens": [len(samples[i].input_ids) for i in order],
            "n_entries": [len(block[i].ids) for i in at],
            "input_ids": [samples[i].input_ids for i in order],
            "targets": [encoded[i] for i in at],
        },
        LOGITS,
        {"cachekd": "logits", "codec": header.to_json(), "capture_id": identity.capture_id},
    )
    facts = ShardFacts(
        digest=bytes_digest(data),
        bytes=data.size,
        rows=len(order),
        tokens=sum(len(sample.input_ids) for sample in samples),
        entries=sum(len(block[i].ids) for i in at),
        footer=bytes_digest(footer_bytes(data)),
        prior=None,
    )
    location.create(shard_name(facts.digest), data)
    return facts
