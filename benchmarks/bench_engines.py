"""Capture with one worker and with two: processes that share by rank, and actors of Ray.

A Llama with random weights and one thread a worker; each way fills a new cache, all in turn,
medians over rounds of the ratio within a round. Every worker notes wall time and its own processor
time around each batch; its first batch is left out. The rate is that of all workers together while
all of them are at work, so that starting interpreters and loading teachers does not count, nor the
last units, for which one of two waits. ``apart`` are two processes that fill two caches and know
nothing of each other: what this machine gives to two at most. Processor seconds a token hold
scoring, encoding, writing and, in an actor, what Ray does in its process: other work on the machine
hardly changes them. A ratio of rates of 2, and of processor seconds of 1, is linear.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import median, save

from cachekd import PrecomputeConfig
from cachekd.teachers import TeacherFacts
from cachekd.teachers.hf import HFTeacher

VOCAB = 8192
LENGTH = 128
NOTES = "BENCH_ENGINES_NOTES"


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
    """Documents of equal length, all different."""
    with path.open("w") as stream:
        for number in range(documents):
            ids = [(number * 131 + place * 7919) % VOCAB for place in range(LENGTH)]
            stream.write(json.dumps({"input_ids": ids}) + "\n")
    return path


def command(root: Path, cache: Path, *further: object) -> list[str]:
    parts = [sys.executable, "-m", "cachekd_cli", "precompute", "--teacher", root / "teacher"]
    parts += ["--data", root / "data.jsonl", "--cache", cache, "--threads", 1, "--json"]
    parts += ["--unit-tokens", 2048, "--batch-tokens", 512, "--codec", "plain", "--writers", 0]
    parts += ["--backend", "bench_engines:Watched"]
    return [str(part) for part in [*parts, *further]]


def run(*commands: list[str], notes: Path) -> list[dict[str, Any]]:
    """Reports of commands that run at the same time; their workers leave notes."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    further = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, NOTES: str(notes)}
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(one, stdout=pipe, stderr=pipe, env={**os.environ, **further}, text=True)
        for one in commands
    ]
    ended = [process.communicate() for process in started]
    for process, (_, err) in zip(started, ended, strict=True):
        assert process.returncode == 0, err[-4000:]
    return [json.loads(out) for out, _ in ended]


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that a worker scored: wall and processor time when it began and ended."""

    worker: int
    tokens: int
    begun: float
    ended: float
    cpu_begun: float
    cpu_ended: float


class Watched:
    """A teacher that notes each of its batches in a file of its process."""

    def __init__(self, teacher: HFTeacher) -> None:
        self._teacher = teacher
        self._file = Path(os.environ[NOTES]) / str(os.getpid())

    @staticmethod
    def identify(config: PrecomputeConfig) -> TeacherFacts:
        """As the teacher."""
        return HFTeacher.identify(config)

    @staticmethod
    def load(config: PrecomputeConfig, facts: TeacherFacts, threads: int) -> Watched:
        """As the teacher."""
        return Watched(HFTeacher.load(config, facts, threads))

    @property
    def numerics(self) -> Mapping[str, Any]:
        """As the teacher."""
        return self._teacher.numerics

    def score(self, documents: Sequence[Any], *arguments: Any) -> Any:
        """As the teacher; the batch is noted."""
        begun, cpu_begun = time.time(), time.process_time()
        scores = self._teacher.score(documents, *arguments)
        batch = Batch(
            worker=os.getpid(),
            tokens=sum(map(len, documents)),
            begun=begun,
            ended=time.time(),
            cpu_begun=cpu_begun,
            cpu_ended=time.process_time(),
        )
        with self._file.open("a") as stream:
            stream.write(json.dumps(asdict(batch)) + "\n")
        return scores


def notes(folder: Path) -> list[list[Batch]]:
    """Batches of each worker in order, without its first."""
    files = [path.read_text().splitlines() for path in folder.iterdir()]
    return [[Batch(**json.loads(line)) for line in lines[1:]] for lines in files]


def figures(workers: list[list[Batch]]) -> dict[str, float]:
    """Tokens a second while all are at work, and processor seconds of a million tokens."""
    begun = max(batches[0].begun for batches in workers)
    ended = min(batches[-1].ended for batches in workers)
    every = [batch for batches in workers for batch in batches]
    inside = sum(b.tokens * _share(b, begun, ended) for b in every)
    cpu = sum(batches[-1].cpu_ended - batches[0].cpu_begun for batches in workers)
    return {
        "tokens_per_second": inside / (ended - begun),
        "cpu_seconds_per_million_tokens": 1e6 * cpu / sum(b.tokens for b in every),
    }


def _share(batch: Batch, begun: float, ended: float) -> float:
    """What part of a batch lies within a time."""
    inside = min(batch.ended, ended) - max(batch.begun, begun)
    return max(0.0, inside) / (batch.ended - batch.begun)


def ranks(root: Path, cache: Path, count: int) -> list[list[str]]:
    shares = [("--rank", rank, "--world-size", count) for rank in range(count)]
    return [command(root, cache, *share) for share in shares]


def apart(root: Path, cache: Path, count: int) -> list[list[str]]:
    return [command(root, cache / str(number)) for number in range(count)]


def actors(root: Path, cache: Path, count: int) -> list[list[str]]:
    further = ("--engine", "ray", "--ray-address", "local", "--ray-actors", count)
    return [command(root, cache, *further)]


WAYS: dict[str, tuple[Callable[[Path, Path, int], list[list[str]]], int]] = {
    "ranks_1": (ranks, 1),
    "ranks_2": (ranks, 2),
    "apart_2": (apart, 2),
    "ray_1": (actors, 1),
    "ray_2": (actors, 2),
}
RATIOS = {
    "ranks": ("ranks_2", "ranks_1"),
    "ray": ("ray_2", "ray_1"),
    "apart": ("apart_2", "ranks_1"),
    "one_actor_over_one_process": ("ray_1", "ranks_1"),
}


def one_round(root: Path, number: int) -> tuple[dict[str, dict[str, float]], set[str]]:
    """Figures of each way, and the root digests of the caches."""
    found, digests = {}, set()
    for way, (start, count) in WAYS.items():
        folder = root / f"{way}-{number}"
        (folder / "notes").mkdir(parents=True)
        reports = run(*start(root, folder / "cache", count), notes=folder / "notes")
        digests |= {report["root"] for report in reports}
        workers = notes(folder / "notes")
        assert len(workers) == count, f"{way}: {len(workers)} workers scored"
        found[way] = figures(workers)
        print(number, way, found[way], os.getloadavg()[0], file=sys.stderr, flush=True)
    return found, digests


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Medians of each way, and of ratios within a round."""

    def ratio(over: str, under: str, name: str) -> float:
        return median([one[over][name] / one[under][name] for one in rounds])

    return {
        "medians": {
            way: {name: median([one[way][name] for one in rounds]) for name in rounds[0][way]}
            for way in WAYS
        },
        "ratios": {
            name: {figure: ratio(*pair, figure) for figure in rounds[0]["ranks_1"]}
            for name, pair in RATIOS.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rounds, digests, loads = [], set(), []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_teacher(root / "teacher")
        write_data(root / "data.jsonl", arguments.documents)
        for number in range(arguments.rounds):
            loads.append(round(os.getloadavg()[0], 2))
            found, own = one_round(root, number)
            rounds.append(found)
            digests |= own
    assert len(digests) == 1, "one cache, whoever filled it"
    save(
        "engines",
        {
            "tokens": LENGTH * arguments.documents,
            "rounds": arguments.rounds,
            "load_1min_as_rounds_began": loads,
            "root_digests": len(digests),
            **summary(rounds),
        },
    )


if __name__ == "__main__":
    main()
