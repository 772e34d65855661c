"""On-policy methods on a real teacher and student: what each lowers, and what its steps cost.

Every method starts from the same student that was fine-tuned on the data, and takes as many steps.
Then the student answers held-out prompts, and teacher and student look at the answers with whole
distributions (`cachekd.evaluation.own_text`). Seeds change the order of prompts, the coins and the
draws; each trained student is sampled ``--draws`` times.

    python benchmarks/bench_on_policy.py --teacher T --student S --train A.jsonl \
        --heldout B.jsonl --evaluated C.jsonl

``--only`` runs some methods, and ``--merge`` puts the files of several such runs together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from common import machine, save
from transformers import AutoModelForCausalLM, AutoTokenizer

import cachekd
from cachekd.config import DataConfig, TrainConfig
from cachekd.data.models import end_tokens, model_config
from cachekd.evaluation.own_text import own_text
from cachekd.rollouts.responses import DrawSpec
from cachekd.training.texts import Wording, samples_of
from cachekd.types import Int32

DIVERGENCES = {
    "forward_kl": ("forward_kl", 0.5),
    "reverse_kl": ("reverse_kl", 0.5),
    "jsd": ("jsd", 0.5),
    "skew_reverse_kl": ("skew_reverse_kl", 0.1),
    "tvd": ("tvd", 0.5),
}
MINILLM = {"collect": 64, "inner_epochs": 4, "max_new_tokens": 64}
WAYS: dict[str, tuple[str, dict[str, Any], str]] = {
    "gkd": ("gkd", {"lmbda": 1.0, "max_new_tokens": 64}, "jsd"),
    "imitkd": ("imitkd", {"max_new_tokens": 64}, "forward_kl"),
    "distillm": (
        "distillm",
        {"max_new_tokens": 64, "replay": 256, "lmbda": 0.3, "phi_margin": 0.02},
        "skew_reverse_kl",
    ),
    "distillm on-policy": (
        "distillm",
        {"max_new_tokens": 64, "lmbda": 1.0, "replay": 100000},
        "skew_reverse_kl",
    ),
    "minillm": ("minillm", MINILLM, "reverse_kl"),
    "minillm, no length norm": ("minillm", {**MINILLM, "length_norm": False}, "reverse_kl"),
    "minillm, no teacher mix": ("minillm", {**MINILLM, "teacher_mix": 0.0}, "reverse_kl"),
    "minillm, no single step": ("minillm", {**MINILLM, "single_step": 0.0}, "reverse_kl"),
    "multi_granularity": ("multi_granularity", {"max_new_tokens": 64}, "forward_kl"),
    "multi_granularity, no scrg": (
        "multi_granularity",
        {"max_new_tokens": 64, "scrg": 0},
        "forward_kl",
    ),
}
"""Of each way its objective, options, and the divergence that it lowers."""


def heldout_prompts(path: str, student: Path, count: int) -> list[Int32]:
    """Prompts of held-out data, worded as a run words them."""
    tokenizer = AutoTokenizer.from_pretrained(student)
    made = {"prompt_template": "auto", "add_eos": True, "clock": "2026-01-01T00:00:00"}
    wording = Wording(made=made, vocab_size=len(tokenizer))
    prepared = samples_of(DataConfig(data=(path,), max_samples=4 * count), wording, tokenizer)
    prompts = [s.input_ids[: s.prompt_length] for s in prepared.samples if s.prompt_length]
    return [ids for ids in prompts if len(ids) <= 200][:count]


def looked_at(
    model: Path, teacher: Any, prompts: list[Int32], draw: DrawSpec, draws: int
) -> dict[str, Any]:
    """Figures of a student, each the mean over draws."""
    student = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = [
        asdict(own_text(student, teacher, prompts, draw, DIVERGENCES, number))
        for number in range(draws)
    ]
    flat = [
        {**{k: v for k, v in one.items() if k != "divergences"}, **one["divergences"]}
        for one in found
    ]
    return {name: statistics.mean(one[name] for one in flat) for name in flat[0]}


def run(args: argparse.Namespace, way: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train in one way; the record of the run."""
    objective, options, _ = WAYS[way]
    return cachekd.train(
        TrainConfig(
            data=(args.train,),
            max_samples=args.samples,
            on_long="skip",
            max_length=320,
            teacher=args.teacher,
            student=args.student,
            objective=objective,
            objective_options=options,
            output_dir=str(folder),
            score_cache=str(folder / "scores"),
            eval_data=(args.evaluated,),
            training={
                "max_steps": args.steps,
                "eval_strategy": "steps",
                "eval_steps": max(args.steps // 4, 1),
                "eval_on_start": True,
                "per_device_eval_batch_size": 32,
                "per_device_train_batch_size": 16,
                "learning_rate": args.learning_rate * (0.5 if objective == "minillm" else 1),
                "lr_scheduler_type": "cosine",
                "warmup_steps": 5,
                "logging_steps": 10,
                "use_cpu": True,
                "save_strategy": "no",
                "disable_tqdm": True,
                "seed": seed,
            },
        )
    )


def one(
    args: argparse.Namespace,
    way: str,
    seed: int,
    teacher: Any,
    prompts: list[Int32],
    draw: DrawSpec,
) -> dict[str, Any]:
    """Train and look."""
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        record = run(args, way, seed, Path(scratch) / "out")
        seconds = time.perf_counter() - start
        figures = looked_at(Path(scratch) / "out", teacher, prompts, draw, args.draws)
    used = record["throughput"]
    return {
        "way": way,
        "seed": seed,
        "own": WAYS[way][2],
        "figures": figures,
        "rollouts": record["rollouts"],
        "training_seconds": used["training_seconds"],
        "steps": record["steps"],
        "wall_seconds": seconds,
        "history": [row for row in record["history"] if "loss" in row],
    }


def table(start: dict[str, Any], runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each way: means over seeds and their spread, beside the start's."""
    rows = [{"way": "start", **{name: round(value, 4) for name, value in start.items()}}]
    for way in dict.fromkeys(run["way"] for run in runs):
        own = [run for run in runs if run["way"] == way]
        name = own[0]["own"]
        means = {key: statistics.mean(run["figures"][key] for run in own) for key in start}
        values = [run["figures"][name] for run in own]
        steps = sum(run["steps"] for run in own)
        seconds = {
            "generate": sum(run["rollouts"]["seconds"].get("generate", 0) for run in own) / steps,
            "read": sum(run["rollouts"]["seconds"].get("student", 0) for run in own) / steps,
            "teacher": sum(run["rollouts"]["scores"]["seconds_teacher"] for run in own) / steps,
            "cache": sum(run["rollouts"]["scores"]["seconds_cache"] for run in own) / steps,
        }
        total = sum(run["training_seconds"] for run in own) / steps
        rows.append(
            {
                "way": way,
                "seeds": len(own),
                "own divergence": name,
                "own, each seed": [round(value, 4) for value in values],
                "own below start in": sum(value < start[name] for value in values),
                **{key: round(value, 4) for key, value in means.items()},
                "step seconds": round(total, 3),
                "of which": {part: round(value, 3) for part, value in seconds.items()},
                "teacher tokens a step": round(
                    sum(run["rollouts"]["scores"]["teacher_tokens"] for run in own) / steps
                ),
            }
        )
    return rows


def arguments() -> argparse.Namespace:
    """What is run on what."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--heldout", required=True, help="prompts that the students answer")
    parser.add_argument("--evaluated", required=True, help="held-out text of the schedule")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="minillm: half of it")
    parser.add_argument("--only", nargs="+", default=list(WAYS))
    parser.add_argument("--partial", type=Path, help="JSON lines that runs are appended to")
    parser.add_argument("--name", default="on_policy", help="of the file of results")
    parser.add_argument("--merge", type=Path, nargs="+", help="partial files; nothing is run")
    return parser.parse_args()


def main() -> None:
    """Run, print and save."""
    args = arguments()
    torch.set_num_threads(1)
    student = Path(args.student)
    teacher = AutoModelForCausalLM.from_pretrained(args.teacher, dtype=torch.float32).eval()
    prompts = heldout_prompts(args.heldout, student, args.prompts)
    draw = DrawSpec(
        max_new_tokens=64,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        seed=17,
        end_tokens=end_tokens(student, model_config(student)),
        vocab_size=int(model_config(student)["vocab_size"]),
        batch_tokens=16384,
    )
    start = looked_at(student, teacher, prompts, draw, args.draws)
    runs = [json.loads(line) for path in args.merge or () for line in path.read_text().splitlines()]
    for seed in () if args.merge else args.seeds:
        for way in args.only:
            runs.append(one(args, way, seed, teacher, prompts, draw))
            if args.partial:
                with args.partial.open("a") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
            print(json.dumps(table(start, runs)[-1]), flush=True)
    rows = table(start, runs)
    for row in rows:
        print(json.dumps(row))
    if not args.partial:
        settings = {
            k: v
            for k, v in vars(args).items()
            if k in ("steps", "samples", "prompts", "draws", "learning_rate")
        }
        save(args.name, {"machine": machine(), "settings": settings, "table": rows})


if __name__ == "__main__":
    main()
