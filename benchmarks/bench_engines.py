"""Capture with one worker and with two: processes that share by rank, and actors of Ray.

A Llama with random weights and one thread a worker; each way fills a new cache, all in turn,
medians over rounds. Rates are tokens over the time from the first batch to the last commit (of
processes: that of the slower one), so that starting interpreters and loading teachers does not
count. A ratio of 2 is linear. With fewer idle processors than workers it says little: see
``machine.load_1min``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import median, save

VOCAB = 8192


def save_teacher(folder: Path) -> Path:
    """About three million parameters, and a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = {f"w{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_data(path: Path, documents: int) -> Path:
    """Documents of 128 tokens, all different."""
    with path.open("w") as stream:
        for number in range(documents):
            ids = [(number * 131 + place * 7919) % VOCAB for place in range(128)]
            stream.write(json.dumps({"input_ids": ids}) + "\n")
    return path


def command(root: Path, cache: Path, *further: object) -> list[str]:
    parts = [sys.executable, "-m", "cachekd_cli", "precompute", "--teacher", root / "teacher"]
    parts += ["--data", root / "data.jsonl", "--cache", cache, "--threads", 1, "--json"]
    parts += ["--unit-tokens", 4096, "--batch-tokens", 1024, "--codec", "plain", "--writers", 0]
    return [str(part) for part in [*parts, *further]]


def run(*commands: list[str]) -> list[dict[str, Any]]:
    """Reports of commands that run at the same time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(one, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
        for one in commands
    ]
    reports = [json.loads(process.communicate()[0]) for process in started]
    assert all(process.returncode == 0 for process in started)
    return reports


def rate(reports: list[dict[str, Any]]) -> float:
    """Tokens a second of all workers together."""
    (tokens,) = {report["tokens"] for report in reports}
    return float(tokens / max(report.get("score_seconds", 0.0) for report in reports))


def ranks(root: Path, cache: Path, count: int) -> list[dict[str, Any]]:
    shares = [("--rank", rank, "--world-size", count) for rank in range(count)]
    return run(*(command(root, cache, *share) for share in shares))


def actors(root: Path, cache: Path, count: int) -> list[dict[str, Any]]:
    return run(
        command(root, cache, "--engine", "ray", "--ray-address", "local", "--ray-actors", count)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-ray", action="store_true")
    arguments = parser.parse_args()
    ways: dict[str, Callable[..., list[dict[str, Any]]]] = {"ranks": ranks}
    if not arguments.no_ray:
        ways["ray"] = actors
    rates: dict[str, list[float]] = {f"{way}_{n}": [] for way in ways for n in (1, 2)}
    roots = set()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_teacher(root / "teacher")
        write_data(root / "data.jsonl", arguments.documents)
        for number in range(arguments.rounds):
            for way, start in ways.items():
                for count in (1, 2):
                    reports = start(root, root / f"{way}-{count}-{number}", count)
                    rates[f"{way}_{count}"].append(rate(reports))
                    roots |= {report["root"] for report in reports if "root" in report}
    assert len(roots) == 1, "one cache, whoever filled it"
    ratios = {
        way: median([b / a for a, b in zip(rates[f"{way}_1"], rates[f"{way}_2"], strict=True)])
        for way in ways
    }
    save(
        "engines",
        {
            "tokens": 128 * arguments.documents,
            "tokens_per_second": {name: median(found) for name, found in rates.items()},
            "two_workers_over_one": ratios,
            "root_digests": len(roots),
        },
    )


if __name__ == "__main__":
    main()
