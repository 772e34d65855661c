"""What a capture costs beside the teacher's own forward, in time and in memory.

A random-weights teacher (12 layers, width 768, about 85 M parameters without embeddings), once with
a vocabulary of 32 000 and once of 131 072. In one process, in turn: the forward alone, with whole
logits, as a caller without a capture would run it; the capture of each kind of selection, through
`precompute`'s own scoring and a writer's process; and the straightforward way, `log_softmax` and
`topk` on whole logits, encoded and written in between. Ratios are over the forward of the same
round; medians of the rounds, of wall time and of the teacher's process's own processor time (which
other work on the machine does not change). The teacher has one thread. With --memory:
peaks of fresh processes, one a way, less what the loaded teacher takes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from common import forget_peak, median, resident, save
from transformers import LlamaConfig, LlamaForCausalLM

from cachekd.codecs import CodecHeader
from cachekd.data.digests import sample_key
from cachekd.engines._writers import OwnProcess, WriterPool, Writers
from cachekd.store.commit import ScoredUnit, Sink
from cachekd.store.io import Location
from cachekd.teachers import Selection
from cachekd.teachers.hf import HFTeacher
from cachekd.types import Int32, TopKLogits

Times = tuple[float, float]

VOCABULARIES = (32_000, 131_072)
TARGET = 1.10


def teacher(vocab: int) -> LlamaForCausalLM:
    """Random weights; logits about as sharp as a real model's."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=1024,
            bos_token_id=None,
            eos_token_id=0,
            tie_word_embeddings=True,
        )
    )
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
    return model.eval()


def selections(vocab: int) -> dict[str, Selection]:
    common = {"vocab_size": vocab, "temperatures": (2.0,), "min_k": 1}
    return {
        "top_k": Selection(k=64, p=1.0, **common),
        "top_p": Selection(k=64, p=0.99, **common),
        "top_k+sampled": Selection(k=64, p=1.0, tau=0.02, **common),
        "sampled": Selection(k=0, p=1.0, samples=50, **common),
    }


class Bench:
    """A teacher with its batches, and the ways to run them."""

    def __init__(self, vocab: int, batches: int, rows: int, length: int, threads: int) -> None:
        self.vocab, self.threads = vocab, threads
        self.model = teacher(vocab)
        self.teacher = HFTeacher(self.model, threads)
        rng = np.random.default_rng(0)
        self.batches = [
            [rng.integers(0, vocab, length).astype(np.int32) for _ in range(rows)]
            for _ in range(batches)
        ]
        self.length = length

    def forward(self) -> None:
        """The teacher alone."""
        for batch in self.batches:
            with torch.inference_mode():
                ids_BT = torch.from_numpy(np.stack(batch).astype(np.int64))
                self.model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT))

    def capture(self, selection: Selection, writers: Writers) -> None:
        """Each batch is a unit: scored, and handed over."""
        for number, batch in enumerate(self.batches):
            targets = self.teacher.score(batch, self.length, selection, [None] * len(batch))
            writers.submit(unit(number, batch, targets))
        writers.finish()

    def straightforward(self, writers: Writers) -> None:
        """Whole logits, obvious calls."""
        for number, batch in enumerate(self.batches):
            with torch.inference_mode():
                ids_BT = torch.from_numpy(np.stack(batch).astype(np.int64))
                output = self.model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT))
                targets = plain_targets(output.logits, ids_BT)
            writers.submit(unit(number, batch, targets))


def plain_targets(logits_BTV: torch.Tensor, ids_BT: torch.Tensor) -> list[TopKLogits]:
    """The same values as `top_k`, each from whole log-probabilities by the obvious call."""
    logprobs_BTV = torch.log_softmax(logits_BTV[:, :-1].float(), dim=-1)
    best_BTK, ids_BTK = logprobs_BTV.topk(64, dim=-1)
    tail_BT = torch.log1p(-best_BTK.exp().sum(-1).clamp(max=1 - 1e-7))
    next_BT = logprobs_BTV.gather(2, ids_BT[:, 1:, None]).squeeze(2)
    entropy_BT = -(logprobs_BTV.exp() * logprobs_BTV).sum(-1)
    norm_BT = torch.logsumexp(logprobs_BTV / 2.0, dim=-1)
    rows = logprobs_BTV.shape[1]
    return [
        TopKLogits(
            offsets=np.arange(rows + 1, dtype=np.int64) * 64,
            ids=ids_BTK[b].flatten().numpy().astype(np.int32),
            logprobs=best_BTK[b].flatten().numpy(),
            weights=None,
            tail=tail_BT[b].numpy(),
            next_logprob=next_BT[b].numpy(),
            lognorm={1.0: np.zeros(rows, np.float32), 2.0: norm_BT[b].numpy()},
            entropy=entropy_BT[b].numpy(),
            vocab_size=logits_BTV.shape[-1],
        )
        for b in range(len(ids_BT))
    ]


def unit(number: int, batch: list[Int32], targets: list[TopKLogits]) -> ScoredUnit:
    return ScoredUnit(
        number=number,
        keys=tuple(map(sample_key, batch)),
        documents=batch,
        targets=targets,
        numerics={},
        seconds=0.0,
    )


@contextmanager
def cache(vocab: int, pool: bool, kept: Selection | None = None) -> Iterator[Writers]:
    """A place to write to, with a writer's process that has started, or without one."""
    header = CodecHeader(
        codec="packed",
        vocab_size=vocab,
        values="float16",
        temperatures=(2.0,),
        tau=kept.tau if kept else 0.0,
        samples=kept.samples if kept else 0,
    )
    with tempfile.TemporaryDirectory() as folder:
        sink = Sink(url=folder, plan="0" * 64, capture_id="bench", header=header)
        with WriterPool(1) if pool else OwnProcess(Location(folder)) as writers:
            writers.open(sink, None)
            if pool:
                time.sleep(2.0)  # in a capture it starts while the teacher is loaded
            yield writers


def seconds(run: Callable[[], None]) -> Times:
    """Wall time, and processor time of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def ways(bench: Bench) -> dict[str, Callable[[], Times]]:
    """Each way as a function that gives its seconds; making and ending processes left out."""

    def captured(selection: Selection) -> Times:
        with cache(bench.vocab, pool=True, kept=selection) as writers:
            return seconds(lambda: bench.capture(selection, writers))

    def captured_inline(selection: Selection) -> Times:
        with cache(bench.vocab, pool=False) as writers:
            return seconds(lambda: bench.capture(selection, writers))

    def straightforward() -> Times:
        with cache(bench.vocab, pool=False) as writers:
            return seconds(lambda: bench.straightforward(writers))

    found: dict[str, Callable[[], Times]] = {"forward": lambda: seconds(bench.forward)}
    for name, selection in selections(bench.vocab).items():
        found[name] = lambda selection=selection: captured(selection)  # type: ignore[misc]
    top_p = selections(bench.vocab)["top_p"]
    found["top_p, --writers 0"] = lambda: captured_inline(top_p)
    found["straightforward"] = straightforward
    return found


def peaks(arguments: argparse.Namespace, vocab: int, names: list[str]) -> dict[str, float]:
    """Peak memory of each way over that of the loaded teacher, MB, each in its own process."""
    found = {}
    for name in names:
        command = [sys.executable, __file__, "--way", name, "--vocab", str(vocab)]
        for option in ("batches", "rows", "length", "threads"):
            command += [f"--{option}", str(getattr(arguments, option))]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[name] = round(float(output) / 1e6, 1)
    return found


def measure(arguments: argparse.Namespace, vocab: int) -> dict[str, Any]:
    bench = Bench(vocab, arguments.batches, arguments.rows, arguments.length, arguments.threads)
    runs = ways(bench)
    times: dict[str, list[Times]] = {name: [] for name in runs}
    for name, run in [*runs.items()][:2]:
        print(f"warming up {name}: {run()[0]:.2f} s", file=sys.stderr)
    for _ in range(arguments.repeats):
        for name, run in runs.items():
            times[name].append(run())
    wall, cpu = over_forward(times, 0), over_forward(times, 1)
    return {
        "parameters": sum(p.numel() for p in bench.model.parameters()),
        "tokens": arguments.batches * arguments.rows * arguments.length,
        "forward_seconds_wall_and_cpu": [
            median([pair[which] for pair in times["forward"]]) for which in (0, 1)
        ],
        "wall_over_forward": wall,
        "teacher_process_cpu_over_forward": cpu,
        "target_met_wall": all(wall[name] <= TARGET for name in selections(vocab)),
        "target_met_cpu": all(cpu[name] <= TARGET for name in selections(vocab)),
    }


def over_forward(times: dict[str, list[Times]], which: int) -> dict[str, float]:
    """Median ratio of each way to the forward of its round."""
    return {
        name: median(
            [mine[which] / base[which] for mine, base in zip(rounds, times["forward"], strict=True)]
        )
        for name, rounds in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--rows", type=int, default=8, help="documents of a batch")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="peaks, in place of times")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--vocab", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.way:
        bench = Bench(
            arguments.vocab,
            arguments.batches,
            arguments.rows,
            arguments.length,
            arguments.threads,
        )
        forget_peak()
        loaded = resident("VmRSS")
        ways(bench)[arguments.way]()
        print(resident("VmHWM") - loaded)
        return
    if arguments.memory:
        names = ["forward", "top_p", "straightforward"]
        found = {f"V={vocab}": peaks(arguments, vocab, names) for vocab in VOCABULARIES}
        tokens = arguments.rows * arguments.length
        save("capture_memory", {"peak_over_loaded_teacher_mb": found, "batch_tokens": tokens})
        return
    rows: dict[str, dict[str, Any]] = {}
    result = {
        "teacher": "12 layers, width 768, float32, random weights",
        "target_over_forward": TARGET,
        "threads": arguments.threads,
        "rounds": arguments.repeats,
        "vocabularies": rows,
    }
    for vocab in VOCABULARIES:  # saved as they come
        rows[f"V={vocab}"] = measure(arguments, vocab)
        save("capture", result)


if __name__ == "__main__":
    main()
