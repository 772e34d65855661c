"""Peak memory of a training step over what student and optimiser hold, and how it grows.

Each way in a fresh process: the first step brings up the optimiser's state and is not counted;
then freed memory is given back, and the peak of resident memory in the second step is taken, less
what was resident before it. Weights, optimiser and a live teacher's weights are so left out; the
gradients of the parameters are within, and ``gradients_mb`` says how much they are. ``body`` is a
step without head and loss: what stands over it is their own. Every allocation of 64 KiB or more is
a mapping of its own, so that what is freed is given back (Linux, glibc). In float32, by the
trainers of bench_train.py.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import training_setup as setup
from common import forget_peak, in_child, resident, save
from training_live import DenseLiveTrainer, LigerTrainer, LiveTrainer, SmallLigerTrainer
from training_turns import Turns
from training_ways import Bench, BodyTrainer, GatherTrainer

OF_FULL = 0.4
VOCABULARIES, TOKENS = (32_768, 65_536, 131_072), (512, 1024, 4096)
GROWTH = ("body", "sft_full", "sft_fused", "kd")
_MMAP_THRESHOLD = -3
"""Of malloc.h."""


def ways(bench: Bench) -> dict[str, Callable[[], Any]]:
    """Trainers by name."""
    return {
        "body": partial(bench.cached, "sft", kind=BodyTrainer),
        "sft_full": bench.sft_full,
        "sft_fused": partial(bench.cached, "sft"),
        "kd": partial(bench.cached, "kd"),
        "kd_unigram": partial(bench.cached, "kd", tail="unigram"),
        "gather": partial(bench.cached, "kd", kind=GatherTrainer),
        "live_full_logits": partial(bench.live, 4, DenseLiveTrainer),
        "live_fused": partial(bench.live, 4, LiveTrainer),
        "liger_chunk_1024": partial(bench.live, 4, LigerTrainer),
        "liger_chunk_256": partial(bench.live, 4, SmallLigerTrainer),
    }


def peak(folder: Path, sizes: setup.Sizes, threads: int, name: str) -> dict[str, float]:
    """Megabytes of the second step of a way."""
    torch.set_num_threads(threads)
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(_MMAP_THRESHOLD, 1 << 16)
    bench = Bench(folder, sizes, bf16=False, steps=3)
    turn = Turns(ways(bench)[name](), threads)
    turn.step()
    gc.collect()
    libc.malloc_trim(0)
    before = resident("VmRSS")
    forget_peak()
    turn.step()
    gradients = sum(p.numel() * p.element_size() for p in bench.student.parameters())
    return {
        "peak_mb": round((resident("VmHWM") - before) / 1e6, 1),
        "gradients_mb": round(gradients / 1e6, 1),
    }


def peaks(sizes: setup.Sizes, threads: int, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Each way in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        in_child(setup.write_caches, Path(folder), sizes, 1, ("k64",))
        found = {name: in_child(peak, Path(folder), sizes, threads, name) for name in names}
    print(sizes, found, file=sys.stderr)
    return found


def over(found: dict[str, dict[str, float]], base: str) -> dict[str, dict[str, float]]:
    """Ratios of peaks, with the gradients of the parameters and without."""

    def net(name: str) -> float:
        return found[name]["peak_mb"] - found[name]["gradients_mb"]

    return {
        name: {
            "with_gradients": round(own["peak_mb"] / found[base]["peak_mb"], 3),
            "without": round(net(name) / net(base), 3),
        }
        for name, own in found.items()
    }


def of_head(rows: dict[str, dict[str, dict[str, float]]]) -> dict[str, list[float]]:
    """What head and loss take over the body, megabytes at each size."""
    return {
        name: [round(row[name]["peak_mb"] - row["body"]["peak_mb"], 1) for row in rows.values()]
        for name in GROWTH[1:]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--liger", action="store_true", help="pip install --no-deps liger-kernel")
    parser.add_argument("--quick", action="store_true", help="a smoke run that saves nothing")
    arguments = parser.parse_args()
    vocabularies, tokens = ((2048, 4096), (256, 512)) if arguments.quick else (VOCABULARIES, TOKENS)
    base = setup.Sizes(vocab=vocabularies[0], tokens=tokens[1], steps=3)
    names = (*GROWTH, "kd_unigram", "gather", "live_full_logits", "live_fused")
    names += ("liger_chunk_1024", "liger_chunk_256") if arguments.liger else ()
    found = peaks(base, arguments.threads, names)
    result: dict[str, Any] = {
        "threads": arguments.threads,
        "base": {"vocab": base.vocab, "tokens": base.tokens, "peaks": found},
        "over_sft_full": over(found, "sft_full"),
        "over_live_full_logits": over(found, "live_full_logits"),
        "target_met": found["kd"]["peak_mb"] <= OF_FULL * found["sft_full"]["peak_mb"],
    }
    save("train_memory", result, keep=not arguments.quick)
    by_vocab = {v: setup.Sizes(vocab=v, tokens=base.tokens, steps=3) for v in vocabularies}
    by_tokens = {t: setup.Sizes(vocab=base.vocab, tokens=t, steps=3) for t in tokens}
    for what, sizes in (("vocabulary", by_vocab), ("tokens", by_tokens)):  # saved as they come
        rows = {
            str(size): {name: found[name] for name in GROWTH}
            if one == base
            else peaks(one, arguments.threads, GROWTH)
            for size, one in sizes.items()
        }
        result[f"growth_with_{what}"] = {"peaks": rows, "over_body_mb": of_head(rows)}
        save("train_memory", result, keep=not arguments.quick)


if __name__ == "__main__":
    main()
