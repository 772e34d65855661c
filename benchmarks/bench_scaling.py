"""Time and memory of a capture, and of opening and reading its cache, as records grow to 1e6.

Each size and stage in a fresh process. Records are very short (four tokens of a vocabulary of 256,
one or two entries kept a row), already tokenised, and the teacher is the dummy, so that what is
seen is cachekd's own cost of a record. Every row is measured. Memory is the peak of anonymous pages
(heap), polled, above what the process holds before the stage; pages of mapped shards are the page
cache's, can be taken back at any time, and are in ``peak_rss_growth_bytes``. Reading holds decoded
row groups up to 256 MiB: ``held_group_bytes`` says how many of them a pass ended with.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from common import save

LENGTH = 4
BLOCK = 64


def anonymous_bytes() -> int:
    """Pages of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def peak_rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def measured(row: dict[str, Any], stage: str) -> Iterator[None]:
    """Put seconds and growth of memory of a stage into a row."""
    gc.collect()
    over = threading.Event()
    before, rss_before = anonymous_bytes(), peak_rss_bytes()
    peak = [before]

    def poll() -> None:
        while not over.wait(0.01):
            peak[0] = max(peak[0], anonymous_bytes())

    thread = threading.Thread(target=poll)
    thread.start()
    started = time.perf_counter()
    yield
    row[f"{stage}_seconds"] = round(time.perf_counter() - started, 3)
    peak[0] = max(peak[0], anonymous_bytes())
    over.set()
    thread.join()
    row[f"{stage}_growth_bytes"] = peak[0] - before
    row[f"{stage}_peak_rss_growth_bytes"] = peak_rss_bytes() - rss_before


def write_records(path: Path, count: int, vocab: int = 250) -> None:
    """Records of a few tokens, all different."""
    with path.open("w") as stream:
        for i in range(count):
            ids = [(i // vocab**place) % vocab for place in range(LENGTH)]
            stream.write(json.dumps({"input_ids": ids}) + "\n")


def save_teacher(folder: Path) -> Path:
    """What the dummy teacher needs: a configuration, and a tokenizer of 256 bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=letters[0]).save_pretrained(
        folder
    )
    config = {"model_type": "llama", "max_position_embeddings": 128, "vocab_size": len(letters)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def capture(folder: Path, count: int) -> dict[str, Any]:
    """A capture of so many records in this process, into ``folder/cache``."""
    from cachekd import PrecomputeConfig
    from cachekd.capture import precompute

    data, teacher = folder / "data.jsonl", save_teacher(folder / "teacher")
    settings: dict[str, Any] = {
        "teacher": str(teacher),
        "backend": "dummy",
        "data": (str(data),),
        "logits_top_k": 2,
        "unit_tokens": 16_384,
        "threads": 1,
    }
    write_records(data, 100)  # imports and first calls are not counted
    precompute(PrecomputeConfig(**settings, cache=str(folder / "first")))
    write_records(data, count)
    row: dict[str, Any] = {"records": count}
    with measured(row, "capture"):
        precompute(PrecomputeConfig(**settings, cache=str(folder / "cache")))
    return row


def read(folder: Path, _count: int) -> dict[str, Any]:
    """Open the cache, order an epoch, and read every record."""
    import cachekd
    from cachekd.training.loader import CacheDataset
    from cachekd.training.order import EpochSampler

    list(cachekd.open_cache(str(folder / "first")))
    row: dict[str, Any] = {}
    with measured(row, "open"):
        cache = cachekd.open_cache(str(folder / "cache"))
    with measured(row, "dataset_and_epoch"):
        dataset = CacheDataset(cache)
        sampler = EpochSampler(dataset, seed=0)
        assert sum(1 for _ in sampler) == len(cache)
    with measured(row, "pass"):
        numbers = iter(range(len(cache)))
        while block := list(islice(numbers, BLOCK)):
            cache.read(block)
    row["held_group_bytes"] = cache._shards._groups._bytes
    row["cache_bytes"] = cache.totals["bytes"]
    return row


def seal(folder: Path, _count: int) -> dict[str, Any]:
    """Seal what is sealed: everything is looked at, and nothing new is written."""
    from cachekd.store.io import Location
    from cachekd.store.seal import seal

    seal(Location(str(folder / "first")))
    row: dict[str, Any] = {}
    with measured(row, "seal"):
        seal(Location(str(folder / "cache")))
    return row


STAGES: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "capture": capture,
    "read": read,
    "seal": seal,
}


def measure(count: int) -> dict[str, Any]:
    """All stages of a size, each in a process of its own."""
    row: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for stage in STAGES:
            command = [sys.executable, __file__, "--stage", stage, folder, str(count)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            row |= json.loads(output)
            print(row, file=sys.stderr, flush=True)
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Bytes of each added record between neighbouring sizes, and microseconds a record."""
    stages = ("capture", "open", "dataset_and_epoch", "pass", "seal")
    added: dict[str, list[int]] = {}
    for stage in stages:
        name = f"{stage}_growth_bytes"
        added[stage] = [
            round((right[name] - left[name]) / (right["records"] - left["records"]))
            for left, right in pairwise(rows)
        ]
    return {
        "bytes_per_added_record": added,
        "microseconds_per_record": {
            stage: [round(1e6 * row[f"{stage}_seconds"] / row["records"], 1) for row in rows]
            for stage in stages
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--stage", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        stage, folder, count = arguments.stage
        print(json.dumps(STAGES[stage](Path(folder), int(count))))
        return
    rows = [measure(count) for count in arguments.counts]
    save("scaling", {"record_tokens": LENGTH, "sizes": rows, **summary(rows)})


if __name__ == "__main__":
    main()
