"""Evaluation: batched writing beside one prompt after the other, and a table of real models.

    python benchmarks/bench_evaluate.py --model sft=S --model init=I --teacher T --data D.jsonl

The first model writes in each way in turn; then all models are evaluated as ``cachekd evaluate``
does it. Ratios are of processor times of one thread, taken in one run, so that other processes do
not count; figures are means and deviations over seeds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from common import machine, median, save

import cachekd
from cachekd.config import EvaluateConfig
from cachekd.evaluation.models import load
from cachekd.evaluation.ready import Candidate, ready
from cachekd.evaluation.texts import end_tokens, write_runs

WAYS: dict[str, dict[str, Any]] = {
    "batched": {},
    "one by one": {"batch_tokens": 1},
    "batched, no n-gram twice": {"no_repeat_ngram_size": 6},
}


def seconds_of(config: Callable[..., EvaluateConfig], rounds: int) -> dict[str, float]:
    """Median processor seconds of each way, run in turn; the first round is not counted."""
    settings = {name: config(seeds=(10,), **further) for name, further in WAYS.items()}
    (one, *_) = ready(next(iter(settings.values()))).candidates
    model = load(one.found)
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(rounds + 1):
        for name, way in settings.items():
            start = time.process_time()
            _write(one, model, way)
            if number:
                taken[name].append(time.process_time() - start)
    return {name: median(values) for name, values in taken.items()}


def _write(one: Candidate, model: Any, config: EvaluateConfig) -> None:
    ends = end_tokens(one.found, one.tokenizer, one.tokens)
    write_runs(one.found, model, one.tokens, ends, config, lambda *_: None)


def figures_of(report: dict[str, Any]) -> dict[str, Any]:
    """Means and deviations of each model."""
    return {
        model["name"]: {
            name: [figure["mean"], figure["deviation"]] for name, figure in model["metrics"].items()
        }
        for model in report["models"]
    }


def main() -> None:
    """Run, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, action="append")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)

    def config(**further: Any) -> EvaluateConfig:
        return EvaluateConfig(
            model=tuple(args.model),
            data=(args.data,),
            max_new_tokens=args.new_tokens,
            **{"max_samples": args.examples, **further},
        )

    seconds = seconds_of(lambda **further: config(max_samples=32, **further), args.rounds)
    report = cachekd.evaluate(config(teacher=args.teacher))
    save(
        "evaluate",
        {
            "machine": machine(),
            "prompts": 32,
            "new_tokens": args.new_tokens,
            "processor_seconds": seconds,
            "one by one / batched": round(seconds["one by one"] / seconds["batched"], 2),
            "no n-gram twice / batched": round(
                seconds["batched, no n-gram twice"] / seconds["batched"], 2
            ),
            "examples": report["data"]["examples"],
            "seeds": report["settings"]["seeds"],
            "models": figures_of(report),
        },
    )


if __name__ == "__main__":
    main()
