"""Writing and scoring of rollouts: beside `generate` of transformers, and over HTTP beside here.

python benchmarks/bench_rollouts.py --teacher T --student S --data B.jsonl
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_on_policy import heldout_prompts
from common import machine, median, save
from transformers import AutoModelForCausalLM

from cachekd.config import ServeConfig, TrainConfig
from cachekd.data.models import model_config
from cachekd.rollouts import Ask
from cachekd.rollouts.responses import DrawSpec
from cachekd.rollouts.sampling import Mix, write
from cachekd.rollouts.teacher import find_teacher
from cachekd.serving.hosted import load_hosted
from cachekd.serving.server import TeacherServer, bind
from cachekd.types import Int32

BATCH, NEW, SUPPORT = 16, 64, 32


def in_turn(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each way, run in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def writing(args: argparse.Namespace, prompts: list[Int32]) -> dict[str, float]:
    """The student writes as many tokens in each way: nothing ends a response."""
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
        for name in (args.student, args.teacher)
    )
    nothing = np.empty(0, np.int32)
    asks = [Ask(input_ids=ids, number=0, forced=nothing) for ids in prompts]
    vocab = int(model_config(Path(args.student))["vocab_size"])
    draw = DrawSpec(max_new_tokens=NEW, vocab_size=vocab, end_tokens=())
    width = max(map(len, prompts))
    ids_BT = torch.zeros((len(prompts), width), dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    for row, ids in enumerate(prompts):
        ids_BT[row, width - len(ids) :] = torch.from_numpy(ids.astype(np.int64))
        mask_BT[row, width - len(ids) :] = 1

    def generated() -> Any:
        return student.generate(
            ids_BT,
            attention_mask=mask_BT,
            do_sample=True,
            top_k=0,
            min_new_tokens=NEW,
            max_new_tokens=NEW,
            pad_token_id=0,
        )

    return in_turn(
        {
            "write": lambda: write(student, asks, draw),
            "generate": generated,
            "write, teacher mixed in": lambda: write(
                student, asks, draw, Mix(model=teacher, alpha=0.2)
            ),
        },
        args.rounds,
    )


def scoring(args: argparse.Namespace, prompts: list[Int32]) -> dict[str, float]:
    """The teacher scores documents of one length, with given ids, here and over HTTP."""
    random = np.random.default_rng(0)
    documents = [np.resize(ids, 128).astype(np.int32) for ids in prompts]
    wanted = [np.arange(127) >= 63 for _ in documents]
    vocab = int(model_config(Path(args.student))["vocab_size"])
    given = [random.integers(0, vocab, (64, SUPPORT)).astype(np.int32) for _ in documents]
    settings = {"student": args.student, "output_dir": "none", "data": ("none",)}
    here = find_teacher(TrainConfig(teacher=args.teacher, **settings), Path(args.student), ()).load(
        "cpu", 1
    )
    config = ServeConfig(teacher=args.teacher, port=0, threads=1, max_wait_ms=0)
    with bind(config) as listener, TeacherServer(load_hosted(config), config, listener) as server:
        there = find_teacher(
            TrainConfig(teacher_url=server.url, **settings), Path(args.student), ()
        ).load(None, None)
        return in_turn(
            {
                name: lambda live=live: live.teacher.score(
                    documents, 128, live.selection, wanted, given
                )
                for name, live in (("in-process", here), ("served", there))
            },
            args.rounds,
        )


def main() -> None:
    """Run, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--teacher", "--student", "--data"):
        parser.add_argument(name, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    prompts = heldout_prompts(args.data, Path(args.student), BATCH)
    wrote, scored = writing(args, prompts), scoring(args, prompts)
    save(
        "rollouts",
        {
            "machine": machine(),
            "batch": BATCH,
            "new_tokens": NEW,
            "seconds": {**wrote, **scored},
            "write / generate": round(wrote["write"] / wrote["generate"], 3),
            "mixed / alone": round(wrote["write, teacher mixed in"] / wrote["write"], 3),
            "served / in-process": round(scored["served"] / scored["in-process"], 3),
        },
    )


if __name__ == "__main__":
    main()
