"""Time and memory of a capture with the dummy teacher as records grow: 1e3, 1e4, 1e5.

Each size in a fresh process with one writer's process: records of eight tokens, already tokenised,
through the whole of `precompute`. The peak is of the teacher's process, less what it holds before
the first row is read; what a record may cost is its tokens, roles and keys, which a plan needs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import save

from cachekd import PrecomputeConfig
from cachekd.capture import precompute


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_records(path: Path, count: int, vocab: int) -> None:
    """Records of eight tokens, all different."""
    with path.open("w") as stream:
        for i in range(count):
            ids = [(i // vocab**place) % vocab for place in range(8)]
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


def run(count: int) -> dict[str, float]:
    """One capture in this process."""
    with tempfile.TemporaryDirectory() as folder:
        data, teacher = Path(folder) / "data.jsonl", save_teacher(Path(folder) / "teacher")
        config = PrecomputeConfig(
            teacher=str(teacher),
            backend="dummy",
            data=(str(data),),
            cache=str(Path(folder) / "cache"),
            logits_top_k=4,
            unit_tokens=16_384,
            threads=1,
        )
        write_records(data, 100, 250)  # imports and first calls are not counted
        precompute(config)
        write_records(data, count, 250)
        before, started = peak_bytes(), time.perf_counter()
        report = precompute(
            PrecomputeConfig(**{**vars(config), "cache": str(Path(folder) / "second")})
        )
        return {
            "records": report["samples"],
            "seconds": time.perf_counter() - started,
            "peak_growth_bytes": peak_bytes() - before,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run(arguments.one)))
        return
    rows = []
    for count in arguments.counts:
        command = [sys.executable, __file__, "--one", str(count)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append(json.loads(output))
        print(rows[-1], file=sys.stderr)
    first, last = rows[0], rows[-1]
    added = last["records"] - first["records"]
    save(
        "capture_scaling",
        {
            "sizes": rows,
            "milliseconds_per_record": [
                round(1e3 * row["seconds"] / row["records"], 3) for row in rows
            ],
            "bytes_of_memory_per_added_record": round(
                (last["peak_growth_bytes"] - first["peak_growth_bytes"]) / added
            ),
        },
    )


if __name__ == "__main__":
    main()
