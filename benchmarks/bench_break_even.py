"""Is what ``cachekd benchmark`` predicts what happens? Totals of a cached and of a live run.

First the benchmark itself, on a sample, as its command runs it; then the real thing on all of the
data: `precompute` and `train` from the cache, and a run of as many steps with a live teacher; then
the benchmark again, for a machine that others use too: predicted is the mean of both. Each
run is in a fresh interpreter of its own, and its time is from its start to its end, imports and the
saved student included. Errors are predicted / measured - 1, of wall time and of processor time,
which other work on the machine hardly changes.

With --times a second comparison: a teacher of about so many times the parameters, of the given
one's kind and with its tokenizer, with random weights and a head as sharp as one that was trained;
times do not depend on what weights say.

    python benchmarks/bench_break_even.py --teacher T --student S --data train.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common import save

import cachekd
from cachekd.config import BenchmarkConfig, TrainConfig, precompute_config
from cachekd.costs.comparison.jobs import Job
from cachekd.costs.comparison.processor import cpu_seconds

ROWS_OF_A_STEP = 8
CLOCKS = ("wall", "cpu")
Seconds = dict[str, float]


def settings(arguments: argparse.Namespace, teacher: Path) -> BenchmarkConfig:
    """What is compared."""
    return BenchmarkConfig(
        teacher=str(teacher),
        student=str(arguments.student),
        data=(str(arguments.data),),
        max_samples=arguments.max_samples,
        on_long="truncate",
        device="cpu",
        threads=arguments.threads,
        samples=arguments.samples,
        steps=arguments.steps,
        epochs=arguments.epochs,
        training={"use_cpu": True, "per_device_train_batch_size": ROWS_OF_A_STEP},
    )


def larger(teacher: Path, folder: Path, times: int) -> Path:
    """A teacher of the same kind: all widths and the depth times the cube root of ``times``."""
    import torch
    from training_setup import SHARPNESS
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(teacher, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    config, by = AutoConfig.from_pretrained(teacher), times ** (1 / 3)
    heads = max(2, 2 * round(config.num_attention_heads * by / 2))
    config.num_attention_heads = config.num_key_value_heads = heads
    config.hidden_size = heads * config.head_dim
    config.intermediate_size = round(config.intermediate_size * by / 16) * 16
    config.num_hidden_layers = round(config.num_hidden_layers * by)
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    torch.nn.init.normal_(model.lm_head.weight, std=SHARPNESS / math.sqrt(config.hidden_size))
    model.save_pretrained(folder)
    return folder


def timed(run: Callable[[BenchmarkConfig, Path], None], config: Any, folder: Path) -> Seconds:
    """Wall and processor seconds of a run in a fresh interpreter, from its start to its end."""
    process = get_context("spawn").Process(target=run, args=(config, folder))
    wall, cpu = time.perf_counter(), cpu_seconds()
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{run.__name__} ended with code {process.exitcode}")
    return {"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu}


def capture(config: BenchmarkConfig, folder: Path) -> None:
    """All data, once."""
    cachekd.precompute(precompute_config(config, cache=str(folder / "cache")))


def set_threads(config: BenchmarkConfig) -> None:
    """As the benchmark's own processes do."""
    import torch

    torch.set_num_threads(config.threads or torch.get_num_threads())


def cached_training(config: BenchmarkConfig, folder: Path) -> None:
    """A run from the cache."""
    set_threads(config)
    cachekd.train(
        TrainConfig(
            cache=(str(folder / "cache"),),
            student=config.student,
            output_dir=str(folder / "out"),
            objective=config.objective,
            training={
                **config.training,
                "num_train_epochs": config.epochs,
                "save_strategy": "no",
                "disable_tqdm": True,
            },
        )
    )


def live_training(config: BenchmarkConfig, folder: Path) -> None:
    """A run of as many steps with a live teacher."""
    from cachekd.costs.comparison.sides import side_of

    set_threads(config)
    with (folder / "out" / "run.json").open() as stream:
        steps = json.load(stream)["steps"]
    whole = BenchmarkConfig(**{**vars(config), "steps": steps - 1, "discard": 1})
    trainer = side_of(Job(side="live", config=whole, folder=folder)).trainer
    trainer.train()
    trainer.save_model(str(folder / "live"))


def predictions(report: dict[str, Any], epochs: float) -> dict[str, Seconds]:
    """What the report makes of its sample; the live run below has its tokens already."""
    clocks = {"wall": "seconds", "cpu": "cpu_seconds"}
    capture, steps = report["capture"], report["steps"]
    found = {"capture": {name: capture[clock]["value"] for name, clock in clocks.items()}}
    for side in ("cached", "live"):
        found[f"{side}_training"] = {
            name: steps[side][f"fixed_{clock}"]["value"]
            + epochs * steps[side][f"epoch_{clock}"]["value"]
            for name, clock in clocks.items()
        }
    return found


def compare(config: BenchmarkConfig) -> dict[str, Any]:
    """Predicted and measured totals."""
    load = [round(os.getloadavg()[0], 2)]
    report = cachekd.benchmark(config)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = (capture, cached_training, live_training)
        measured = {run.__name__: timed(run, config, folder) for run in runs}
    again = cachekd.benchmark(config)
    both = [predictions(one, config.epochs) for one in (report, again)]
    predicted = {
        name: {clock: (both[0][name][clock] + both[1][name][clock]) / 2 for clock in CLOCKS}
        for name in measured
    }
    for totals in (predicted, measured, *both):
        pair = (totals["capture"], totals["cached_training"])
        totals["cached_total"] = {clock: sum(one[clock] for one in pair) for clock in CLOCKS}
        totals["live_over_cached"] = {
            clock: totals["live_training"][clock] / totals["cached_training"][clock]
            for clock in CLOCKS
        }
    load.append(round(os.getloadavg()[0], 2))
    return {
        "epochs": config.epochs,
        "load_1min_before_and_after": load,
        "predicted_seconds": {name: rounded(one) for name, one in predicted.items()},
        "predicted_before_and_after": {
            name: [rounded(one[name]) for one in both] for name in predicted
        },
        "measured_seconds": {name: rounded(one) for name, one in measured.items()},
        "error": {
            name: {c: round(predicted[name][c] / measured[name][c] - 1, 3) for c in CLOCKS}
            for name in predicted
        },
        "report": slim(report),
    }


def slim(report: dict[str, Any]) -> dict[str, Any]:
    """What the prediction is made of."""
    steps = {
        side: {name: one["value"] for name, one in own.items()}
        for side, own in report["steps"].items()
    }
    return {
        "data": report["data"],
        "active_ratio": report["models"]["active_ratio"]["value"],
        "capture": {name: one["value"] for name, one in report["capture"].items()},
        "steps": {side: rounded(own) for side, own in steps.items()},
        "break_even": report["time"]["break_even"],
        "sensitivity": report["sensitivity"],
        "verdict": report["verdict"],
    }


def rounded(values: dict[str, float | None]) -> dict[str, float | None]:
    """Four significant digits."""
    return {name: None if v is None else float(f"{v:.4g}") for name, v in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--max-samples", type=int, default=1500)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--times", type=int, help="a larger teacher too, so many times")
    parser.add_argument("--quick", action="store_true", help="saves nothing")
    arguments = parser.parse_args()
    found = {"as_given": compare(settings(arguments, arguments.teacher))}
    save("break_even", found, keep=not arguments.quick)
    if arguments.times:
        with tempfile.TemporaryDirectory() as name:
            teacher = larger(arguments.teacher, Path(name) / "larger", arguments.times)
            print(f"teacher of {arguments.times} times: {teacher}", file=sys.stderr)
            found["larger_teacher"] = compare(settings(arguments, teacher))
        save("break_even", found, keep=not arguments.quick)


if __name__ == "__main__":
    main()
