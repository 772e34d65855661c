"""Time of a training step: cached targets, plain fine-tuning, live teachers, TRL.

A step is the next batch from the real loader, forward, backward, clip, AdamW and the logs: one turn
of the trainer's own loop. In one process, in turn, round by round, each way takes one step; ratios
are between steps of one round, and medians over the rounds, of wall time and of processor time of
the process. The student (4 layers, width 256, tied head) and its optimiser are shared by all ways.

The caches are written by `precompute` with a teacher of 4 times the student's parameters (body and
head): k64, the 64 best of each position; sqrt, up to 200 of them to a mass of 0.9, as levels.
With --trl (``pip install trl==1.16.0``): TRL's GKDTrainer, which does the same work as a live
teacher, and its DistillationTrainer, which generates first and so does other work.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import training_setup as setup
from common import in_child, median, save
from training_live import LiveTrainer
from training_turns import Times, Turns
from training_ways import OBJECTIVES, Bench, GatherTrainer, TimedDataset

OF_FULL, OF_FUSED = 1.05, 1.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to train; it takes a step in every ``every``-th round."""

    make: Callable[[], Any]
    every: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One run: a vocabulary, a precision, and how much of it."""

    vocab: int
    bf16: bool
    rounds: int
    tokens: int
    threads: int
    trl: bool
    wide: bool

    @property
    def name(self) -> str:
        """Key of the result."""
        return f"V={self.vocab} {'bfloat16' if self.bf16 else 'float32'}"

    @property
    def sizes(self) -> setup.Sizes:
        """One step to start with, and one that the loader fetches ahead."""
        return setup.Sizes(vocab=self.vocab, tokens=self.tokens, steps=self.rounds + 3)


def ways(bench: Bench, table: Table) -> dict[str, Way]:
    """All ways of a table; seldom run are those that are slow or beside the point."""
    found = {
        "sft_full": Way(make=bench.sft_full),
        "sft_fused": Way(make=partial(bench.cached, "sft")),
        "kd": Way(make=partial(bench.cached, "kd")),
        "kd_sqrt": Way(make=partial(bench.cached, "kd", "sqrt")),
        "kd_unigram": Way(make=partial(bench.cached, "kd", tail="unigram")),
        "gather": Way(make=partial(bench.cached, "kd", kind=GatherTrainer)),
        "live_4x": Way(make=partial(bench.live, 4, LiveTrainer)),
    }
    if table.trl:
        import training_trl as trl

        found["trl_gkd_4x"] = Way(make=partial(trl.gkd, bench, 4))
    if not table.wide:
        return found
    for name in OBJECTIVES:
        found[name] = Way(make=partial(bench.cached, name), every=3)
    found["live_10x"] = Way(make=partial(bench.live, 10, LiveTrainer), every=3)
    if table.trl:
        found["trl_gkd_10x"] = Way(make=partial(trl.gkd, bench, 10), every=3)
        found["trl_on_policy_4x"] = Way(make=partial(trl.on_policy, bench, 4), every=3)
    return found


def measure(table: Table, folder: Path) -> dict[str, Any]:
    """Steps of all ways in turn."""
    torch.set_num_threads(table.threads)
    bench = Bench(folder, table.sizes, bf16=table.bf16, steps=table.rounds + 2)
    chosen = ways(bench, table)
    trainers = {name: way.make() for name, way in chosen.items()}
    turns = {name: Turns(trainer, table.threads) for name, trainer in trainers.items()}
    load = os.getloadavg()[0]
    for name, turn in turns.items():
        print(f"{table.name} {name}: starts in {turn.step()[0]:.2f} s", file=sys.stderr)
    times: dict[str, dict[int, Times]] = {name: {} for name in turns}
    for number in range(table.rounds):
        names = [name for name, way in chosen.items() if number % way.every == 0]
        for name in names if number % 2 == 0 else reversed(names):
            times[name][number] = turns[name].step()
    for turn in turns.values():
        turn.end()
    return {
        "load_1min_before_and_after": [round(load, 2), round(os.getloadavg()[0], 2)],
        "rounds": table.rounds,
        "tokens": table.tokens,
        "parameters_of_body_and_head": _parameters(bench, table),
        **_ratios(times),
        "loader": {name: _loader(trainers[name], times[name]) for name in ("kd", "kd_sqrt")},
        "entries_of_a_row": {name: _entries(folder / name) for name in setup.SELECTIONS},
        "first_loss": (losses := {name: turn.first_loss for name, turn in turns.items()}),
        "agreement": _agreement(losses),
    }


def _parameters(bench: Bench, table: Table) -> dict[str, int]:
    of = {"student": setup.counted(bench.student), "4x": setup.counted(bench.teacher(4))}
    return of | ({"10x": setup.counted(bench.teacher(10))} if table.wide else {})


def _ratios(times: dict[str, dict[int, Times]]) -> dict[str, Any]:
    """Seconds, and ratios between steps of one round, wall and processor."""
    found: dict[str, Any] = {
        "step_seconds": {
            name: {what: median([one[i] for one in own.values()]) for i, what in _CLOCKS}
            for name, own in times.items()
        },
    }
    for base in ("sft_full", "sft_fused"):
        found[f"over_{base}"] = {name: over(own, times[base]) for name, own in times.items()}
    others = [name for name in times if name.startswith(("gather", "live", "trl"))]
    found["kd_over"] = {name: over(times["kd"], times[name]) for name in others}
    found["targets_met"] = {
        f"kd over sft_full <= {OF_FULL}": found["over_sft_full"]["kd"]["cpu"] <= OF_FULL,
        f"kd over sft_fused <= {OF_FUSED}": found["over_sft_fused"]["kd"]["cpu"] <= OF_FUSED,
    }
    return found


_CLOCKS = ((0, "wall"), (1, "cpu"))


def over(own: dict[int, Times], base: dict[int, Times]) -> dict[str, float]:
    """Median ratio over the rounds in which both took a step."""
    both = sorted(own.keys() & base.keys())
    return {what: median([own[n][i] / base[n][i] for n in both]) for i, what in _CLOCKS}


def _loader(trainer: Any, times: dict[int, Times]) -> dict[str, float]:
    """Processor milliseconds a step to read, decode and collate records, no worker; and share."""
    dataset, collator = trainer.train_dataset, trainer.data_collator
    decode, collate = dataset.seconds / dataset.batches, collator.seconds / dataset.batches
    step = median([cpu for _, cpu in times.values()])
    return {
        "decode_ms": round(1e3 * decode, 2),
        "collate_ms": round(1e3 * collate, 2),
        "share_of_step": float(f"{(decode + collate) / step:.3g}"),
    }


def _entries(cache: Path) -> dict[str, float]:
    dataset = TimedDataset(str(cache))
    counts = np.concatenate([np.diff(dataset.record(i).logits.offsets) for i in range(8)])
    return {name: float(np.percentile(counts, q)) for name, q in _QUANTILES}


_QUANTILES = (("least", 0), ("5 %", 5), ("median", 50), ("95 %", 95), ("most", 100))


def _agreement(losses: dict[str, float]) -> dict[str, float]:
    """Relative differences of first losses that are one quantity on the same documents."""
    pairs = [("sft_fused", "sft_full"), ("live_4x", "trl_gkd_4x"), ("live_10x", "trl_gkd_10x")]
    return {
        f"{left} and {right}": float(f"{abs(losses[left] / losses[right] - 1):.2g}")
        for left, right in pairs
        if left in losses and right in losses
    }


def run(table: Table) -> dict[str, Any]:
    """Caches by one process, steps by another."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        in_child(setup.write_caches, folder, table.sizes, 4, tuple(setup.SELECTIONS))
        result: dict[str, Any] = in_child(measure, table, folder)
    return result


def tables(arguments: argparse.Namespace) -> list[Table]:
    """float32 and bfloat16 at the first vocabulary, and float32 with fewer ways at the others."""
    common = {"threads": arguments.threads, "tokens": arguments.tokens, "trl": arguments.trl}
    first, *more = arguments.vocabularies
    rounds = arguments.rounds
    made = [
        Table(vocab=first, bf16=bf16, rounds=rounds, wide=not arguments.quick, **common)
        for bf16 in (False, True)
    ]
    few = max(rounds // 2, 1)
    made += [Table(vocab=v, bf16=False, rounds=few, wide=False, **common) for v in more]
    return made[:1] if arguments.quick else made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=1024, help="of a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_768])
    parser.add_argument("--trl", action="store_true", help="TRL too: pip install trl==1.16.0")
    parser.add_argument("--quick", action="store_true", help="a smoke run that saves nothing")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.tokens, arguments.vocabularies = 1, 256, [2048]
    found: dict[str, Any] = {}
    for table in tables(arguments):  # saved as they come
        found[table.name] = run(table)
        save("train", {"threads": arguments.threads, "tables": found}, keep=not arguments.quick)


if __name__ == "__main__":
    main()
