"""Made-up caches of very short records in any number of shards, written by the product's writers.

Comes in: a folder, how many records, and how many of them make a shard. Goes out: a cache of one
plan, whose units were committed by `write_unit` one by one, not yet sealed. Record i spells i in
the digits of a number system, so all differ; the targets of eight records are repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
from synthetic import Shape, identity_of, targets

from cachekd.codecs import Codec, CodecHeader
from cachekd.data.digests import bytes_digest
from cachekd.data.packed import Keys
from cachekd.plugins import find
from cachekd.store import disk
from cachekd.store.commit import ScoredUnit, Sink, write_unit
from cachekd.store.identity_files import write_identity
from cachekd.store.io import Location
from cachekd.store.layout import plan_name, samples_name
from cachekd.store.plan import Plan, PlannedBatch
from cachekd.store.samples import SHARD_ROWS, keys_of, sample_ids, write_samples
from cachekd.types import Int32, Role, Sample, TopKLogits

CODEC = "packed"
TOKENS = 4
VOCAB = 256
_SHAPE = Shape(shards=1, documents=8, tokens=TOKENS, vocab=VOCAB, k=2)
_ROLES = np.array([Role.USER, Role.USER, Role.ASSISTANT, Role.ASSISTANT], np.uint8)


def documents(first: int, count: int) -> list[Int32]:
    """Token ids of records ``first`` to ``first + count``, all different."""
    numbers_P1 = np.arange(first, first + count)[:, None]
    ids_PL = numbers_P1 // VOCAB ** np.arange(TOKENS) % VOCAB
    return list(ids_PL.astype(np.int32))


@cache
def _block() -> list[TopKLogits]:
    random = np.random.default_rng(0)
    return [targets(TOKENS - 1, _SHAPE, random) for _ in range(_SHAPE.documents)]


@contextmanager
def hurried() -> Iterator[None]:
    """Within, nothing waits for the disk, and equal targets are encoded once."""
    codec, encoded = find("codecs", CODEC), dict[int, bytes]()
    encode = codec.encode

    def encode_once(self: Codec, target: TopKLogits) -> bytes:
        if id(target) not in encoded:
            encoded[id(target)] = encode(self, target)
        return encoded[id(target)]

    with patch.object(disk, "sync", lambda file: None), patch.object(codec, "encode", encode_once):
        yield


def write_samples_shards(
    location: Location, first: int, count: int
) -> tuple[tuple[str, ...], Keys]:
    """Samples shards of these records, as a run makes them; their digests, and the keys."""
    digests, keys = [], []
    for start in range(first, first + count, SHARD_ROWS):
        rows = min(SHARD_ROWS, first + count - start)
        samples = [
            Sample(input_ids=ids_L, roles=_ROLES, source="made-up", row=start + i)
            for i, ids_L in enumerate(documents(start, rows))
        ]
        own = keys_of(samples)
        data = write_samples(samples, own, sample_ids(samples, own), range(start, start + rows))
        location.keep(samples_name(bytes_digest(data)), data, bytes_digest(data))
        digests.append(bytes_digest(data))
        keys.append(own)
    return tuple(digests), Keys.joined(keys)


def append_run(location: Location, first: int, count: int, rows: int, sequence: int = 0) -> int:
    """A plan of these records with all its units committed, ``rows`` records each.

    Returns:
        how many units that were.
    """
    identity = identity_of(_SHAPE)
    write_identity(location, identity)
    samples, keys = write_samples_shards(location, first, count)
    starts = range(0, count, rows)
    plan = Plan(
        run=f"made-up-{first}",
        capture_id=identity.capture_id,
        sequence=sequence,
        keys=keys,
        units=tuple((PlannedBatch(at, min(rows, count - at), TOKENS),) for at in starts),
        threads=1,
        samples=samples,
        skipped={},
        changed={},
    )
    digest, data = plan.dump()
    location.keep(plan_name(digest), data, digest)
    commit_units(location, plan, digest, range(len(plan.units)))
    return len(plan.units)


def commit_units(location: Location, plan: Plan, digest: str, numbers: Iterable[int]) -> None:
    """Commit these units of a plan of `append_run`."""
    header = CodecHeader(codec=CODEC, vocab_size=VOCAB, values=_SHAPE.values, temperatures=())
    sink = Sink(url=location.url, plan=digest, capture_id=plan.capture_id, header=header)
    block, start = _block(), int(plan.run.rpartition("-")[2])
    for number in numbers:
        (batch,) = plan.units[number]
        unit = ScoredUnit(
            number=number,
            keys=plan.unit_keys(number),
            documents=documents(start + batch.first, batch.rows),
            targets=[block[i % len(block)] for i in range(batch.rows)],
            numerics={"dtype": "float32", "threads": 1, "split": {}},
            seconds=0.0,
        )
        write_unit(sink, location, unit, None)


def write_cache(folder: Path, records: int, rows: int) -> None:
    """A cache of one run, not sealed."""
    with hurried():
        append_run(Location(str(folder)), 0, records, rows)
