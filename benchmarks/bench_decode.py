"""How fast a shard becomes tensors on one core, beside zstd alone and a bit-expanding reader.

One setting for size and speed: levels of sqrt(p) at 1/16, which keep about 64 entries a token on
the positions given. The shard lies in the page cache and is read batch by batch in random order, as
in training. In turn in one process, with one thread: zstd's own decompression of the same frames;
frames to arrays; the whole way through the shard to torch tensors; and, as DistillKit's reader does
it, the ids of 64 entries a token from nested lists of bytes in Parquet, expanded bit by bit with
torch (its values are left out): the expansion alone, and with the way from the file.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peers
import positions as real
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zstandard
from common import median, save

from cachekd.codecs import CodecHeader
from cachekd.codecs._learn import learn_prior
from cachekd.store.io import Location
from cachekd.store.layout import shard_name
from cachekd.store.priors import Priors, write_prior
from cachekd.store.shards import Shard, ShardFacts, write_shard
from cachekd.types import TopKLogits

STEP, DOCUMENT, BATCH, COPIES = 1 / 16, 1024, 8, 6
K = 64


def make_shard(
    positions: real.Positions, location: Location
) -> tuple[ShardFacts, list[TopKLogits]]:
    """A shard of the evaluation part, several times over under other token ids."""
    floor = (STEP / 2) ** 2
    train, held = (
        real.records(part, positions.vocab, k=real.BEST, floor=floor, length=DOCUMENT)
        for part in (positions.train, positions.evaluation)
    )
    prior = learn_prior(train, positions.vocab, budget=800_000)
    header = CodecHeader(
        codec="packed",
        vocab_size=positions.vocab,
        values="sqrt",
        step=STEP,
        temperatures=(),
        prior=write_prior(location, prior),
    )
    records = held * COPIES
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, positions.vocab, r.rows + 1).astype(np.int32) for r in records]
    keys = [i.to_bytes(16, "big") for i in range(len(records))]
    data, facts = write_shard(header, "capture", keys, ids, records, prior)
    location.create(shard_name(facts.digest), data)
    return facts, records


def to_tensors(shard: Shard, order: np.ndarray) -> int:
    """All records, a batch at a time, as tensors; the number of entries."""
    entries = 0
    for start in range(0, len(order), BATCH):
        for _, ids, targets in shard.records(order[start : start + BATCH].tolist()):
            parts = (ids.copy(), targets.offsets, targets.ids, targets.logprobs, targets.tail)
            tensors = [torch.from_numpy(part) for part in parts]
            entries += len(tensors[2])
    return entries


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    positions = real.load(arguments.positions)
    with tempfile.TemporaryDirectory() as folder:
        location = Location(folder)
        facts, records = make_shard(positions, location)
        shard = Shard(location, facts, "capture", priors=Priors(location))
        order = np.random.default_rng(1).permutation(len(records))
        stored = [shard._stored(row)[2] for row in order.tolist()]
        rows = sum(record.rows for record in records)
        bits = (positions.vocab - 1).bit_length()
        ids = positions.evaluation.ids[:DOCUMENT, :K]
        packed = torch.from_numpy(peers.pack_bits(ids, bits))
        assert (peers.unpack_bits(packed, bits, K).numpy() == ids).all()
        nested = Path(folder) / "nested.parquet"
        pq.write_table(pa.table({"ids": pa.array([packed.tolist()])}), nested)
        frames = [bytes(blob) for blob, _, _ in stored]
        runs: dict[str, Callable[[], Any]] = {
            "zstd": lambda: [zstandard.ZstdDecompressor().decompress(frame) for frame in frames],
            "frames_to_arrays": lambda: [
                shard._codec.decode(stored[i : i + BATCH]) for i in range(0, len(stored), BATCH)
            ],
            "shard_to_tensors": lambda: to_tensors(shard, order),
            "bit_expanding": lambda: peers.unpack_bits(packed, bits, K),
            "bit_expanding_from_parquet": lambda: peers.unpack_bits(
                torch.tensor(pq.read_table(nested)["ids"][0].as_py(), dtype=torch.uint8), bits, K
            ),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(arguments.repeats):
            for name, run in runs.items():
                times[name].append(seconds(run))
        entries = to_tensors(shard, order)
    middle = {name: median(values) for name, values in times.items()}
    tokens = {name: rows / value for name, value in middle.items()}
    rivals = [name for name in runs if name.startswith("bit")]
    tokens |= {name: DOCUMENT / middle[name] for name in rivals}
    save(
        "decode",
        {
            "setting": "sqrt 1/16",
            "entries_per_token": round(entries / rows, 1),
            "bytes_per_token_targets": round(sum(map(len, frames)) / rows, 2),
            "bytes_per_token_shard": round(facts.bytes / rows, 2),
            "seconds_median": middle,
            "million_entries_per_second": {
                name: round(value * (K if name in rivals else entries / rows) / 1e6, 2)
                for name, value in tokens.items()
            },
            "million_tokens_per_second": {n: round(v / 1e6, 3) for n, v in tokens.items()},
            "shard_to_tensors_over_zstd": round(middle["zstd"] / middle["shard_to_tensors"], 3),
            "shard_to_tensors_over": {
                name: round(tokens["shard_to_tensors"] / tokens[name], 1) for name in rivals
            },
            "target_million_entries_per_second": 64,
            "load": "one thread; other work may run on the machine",
        },
    )


if __name__ == "__main__":
    main()
