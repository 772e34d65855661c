"""Rows a second into and out of other tools' formats, beside plain reading and writing; errors.

Each format is written from one cache and imported again, turn by turn, and in the same turn the
plain way: the same columns read as `pyarrow` reads them, sixteen documents at a time, or written
as one table with the same compression; lines of JSON parsed; payloads of Megatron-LM unpacked by
``torch.load``. None of that checks a row, aligns it, packs it or makes it safe on a disk. A ratio
of 1 is as fast as that. Errors are the largest over all rows, of what came back against the cache.

``--cache`` takes distributions of a real teacher, with ``--tokenizer``; else power laws are made.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zstandard
from common import median, save
from exchanged import Made, each_row, errors, fresh, imported

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from exchanging import padded, version_2, write_tar

from cachekd import ExportConfig, export_cache
from cachekd.data.packed import Keys
from cachekd.exchange._files import ROWS
from cachekd.exchange._seen import Seen

# Name of a way, its format, and what it is exported and imported with.
WAYS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "arrow": ("arrow", {}, {}),
    "axolotl": ("axolotl", {}, {}),
    "axolotl, renormalised": ("axolotl", {"values": "renormalised"}, {}),
    "distillkit": ("distillkit", {}, {"rescale": True}),
    "distillkit, float16": ("distillkit", {"exact_dtype": "float16"}, {"rescale": True}),
    "distillkit, bfloat16": ("distillkit", {"exact_dtype": "bfloat16"}, {"rescale": True}),
    "distillkit, 16 exact": (
        "distillkit", {"exact_dtype": "bfloat16", "exact_k": 16}, {"rescale": True},
    ),
}  # fmt: skip
HALVES = {"megatron, float32": torch.float32, "megatron, float16": torch.float16}
HALVES["megatron, bfloat16"] = torch.bfloat16
Timed = dict[str, list[float]]


def seconds(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def tables(made: Made, repeats: int) -> dict[str, Any]:
    """Parquet formats, out and in, beside the plain table."""
    found: dict[str, Timed] = {way: {} for way in WAYS}
    for number in range(repeats):
        for way, (name, out, back) in WAYS.items():
            folder, cache = fresh(made.work / "out"), fresh(made.work / "in")
            config = ExportConfig(cache=made.cache.url, format=name, out=str(folder), **out)
            exported = seconds(lambda config=config: export_cache(config))
            files = sorted(folder.glob("*.parquet"))
            whole = pa.concat_tables([pq.read_table(file) for file in files])
            turn = {
                "export": exported,
                "write": seconds(
                    lambda t=whole: pq.write_table(t, made.work / "plain", compression="zstd")
                ),
                "import": seconds(
                    lambda f=folder, n=name, c=cache, b=back: imported(f, n, made, c, **b)
                ),
                "read": seconds(lambda f=files: [plain_read(file) for file in f]),
            }
            for what, took in turn.items():
                found[way].setdefault(what, []).append(took)
            if number == 0:
                found[way]["error"] = errors(made, cache, way)  # type: ignore[assignment]
    return {way: speeds(made.rows, timed) for way, timed in found.items()}


def plain_read(file: Path) -> int:
    return sum(batch.num_rows for batch in pq.ParquetFile(file).iter_batches(batch_size=ROWS))


def speeds(rows: int, timed: Timed) -> dict[str, Any]:
    """Rows a second, and the time of ours over that of the plain way, by pairs of one turn."""
    result: dict[str, Any] = {"error": timed.pop("error")}
    for own, plain in (("import", "read"), ("export", "write")):
        if own in timed:
            both = list(zip(timed[own], timed[plain], strict=True))
            result[f"{own}_rows_per_second"] = round(rows / median(timed[own]))
            result[f"{plain}_rows_per_second"] = round(rows / median(timed[plain]))
            result[f"{own}_over_{plain}"] = median([a / b for a, b in both])
    return result


def lines(made: Made, repeats: int) -> dict[str, Any]:
    """Responses of vLLM with scored prompts, beside parsing their JSON."""
    path = made.work / "responses.jsonl"
    with path.open("w") as file:
        for record in made.records:
            places = [None, *map(place, each_row(record))]
            ids = record.input_ids.tolist()
            answer = {"prompt_token_ids": ids, "prompt_logprobs": places, "choices": [{}]}
            file.write(json.dumps(answer) + "\n")
    timed: Timed = {}
    for _ in range(repeats):
        cache = fresh(made.work / "in")
        timed.setdefault("import", []).append(
            seconds(lambda c=cache: imported(path, "openai", made, c))
        )
        timed.setdefault("read", []).append(
            seconds(lambda: [json.loads(line) for line in path.open("rb")])
        )
    timed["error"] = errors(made, made.work / "in", "openai")  # type: ignore[assignment]
    return speeds(made.rows, timed)


def place(row: tuple[np.ndarray, np.ndarray]) -> dict[str, dict[str, float]] | None:
    ids, logs = row
    return {str(i): {"logprob": v} for i, v in zip(ids.tolist(), logs.tolist(), strict=True)}


def tars(made: Made, repeats: int) -> dict[str, Any]:
    """Tars of version 2, beside unpacking their payloads; documents are cut to one length."""
    rows = min(64, *(record.logits.rows for record in made.records))
    records = made.records[: len(made.records) // 8 * 8]
    tokens = made.work / "tokens.jsonl"
    ids = [{"input_ids": record.input_ids[: rows + 1].tolist()} for record in records]
    tokens.write_text("".join(json.dumps(line) + "\n" for line in ids))
    found = {}
    for way, dtype in HALVES.items():
        folder = fresh(made.work / "tars")
        folder.mkdir()
        payloads = {}
        for first in range(0, len(records), 8):
            values, own = padded(records[first : first + 8], rows, made_k(made))
            payloads[f"{first}-{first + 8}"] = version_2(values.to(dtype), own)
        meta = {"mbs_save": 8, "dp_size_save": 1, "gbs_save": 8}
        write_tar(folder / f"dp0__0-{len(records)}.tar", meta, payloads)
        packed = [zstandard.compress(data) for data in payloads.values()]
        timed: Timed = {}
        for _ in range(repeats):
            cache = fresh(made.work / "in")
            timed.setdefault("import", []).append(
                seconds(
                    lambda f=folder, c=cache: imported(
                        f, "megatron", made, c, tokens=(str(tokens),)
                    )
                )
            )
            timed.setdefault("read", []).append(
                seconds(lambda p=packed: [plain_payload(data) for data in p])
            )
        timed["error"] = errors(made, made.work / "in", way, rows)  # type: ignore[assignment]
        found[way] = speeds(len(records) * rows, timed)
    return found


def made_k(made: Made) -> int:
    return max(int(np.diff(record.logits.offsets).max()) for record in made.records)


def plain_payload(data: bytes) -> Any:
    return torch.load(BytesIO(zstandard.decompress(data)), weights_only=True)


def memory(count: int) -> dict[str, Any]:
    """Bytes for each digest that an import remembers, and with sets of Python's objects."""
    data = np.random.default_rng(0).bytes(16 * count)
    parts = [data[i : i + 16 * 1000] for i in range(0, len(data), 16 * 1000)]

    def flat() -> Seen:
        seen = Seen()
        for part in parts:
            seen.add(Keys(np.frombuffer(part, "S16")))
        return seen

    def objects() -> set[bytes]:
        return {part[i : i + 16] for part in parts for i in range(0, len(part), 16)}

    found = {}
    for name, act in (("flat", flat), ("objects", objects)):
        tracemalloc.start()
        kept = act()
        current, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        found[name] = {"held": round(current / count, 1), "peak": round(peak / count, 1)}
        del kept
        found[name]["microseconds"] = round(1e6 * seconds(act) / count, 2)
    return {"digests": count, "bytes_per_digest": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", help="cache of exact heads; else one is made up")
    parser.add_argument("--tokenizer", help="its tokenizer")
    parser.add_argument("--documents", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small, and nothing is saved")
    args = parser.parse_args()
    documents, repeats = (8, 1) if args.quick else (args.documents, args.repeats)
    with tempfile.TemporaryDirectory() as folder:
        made = Made(Path(folder), args.cache, args.tokenizer, documents)
        result = {
            "rows": made.rows,
            "entries": int(sum(len(record.logits.ids) for record in made.records)),
            "formats": {
                **tables(made, repeats),
                "openai": lines(made, repeats),
                **tars(made, repeats),
            },
            "memory": memory(20_000 if args.quick else 1_000_000),
        }
    save("exchange", result, keep=not args.quick)


if __name__ == "__main__":
    main()
