"""How long ``cachekd --help`` and ``cachekd inspect`` take, beside ``import torch`` alone.

Whole processes, run in turn; medians of wall seconds. Target: both under one second.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import median, save

import cachekd
from cachekd import PrecomputeConfig


def make_cache(folder: Path) -> Path:
    """A small real cache, made with the bundled teacher."""
    from cachekd.demo import corpus

    train, _ = corpus.write_corpus(folder)
    teacher = Path(corpus.__file__).parent / "teacher"
    cachekd.precompute(
        PrecomputeConfig(
            teacher=str(teacher), data=(str(train),), cache=str(folder / "cache"), max_samples=200
        )
    )
    return folder / "cache"


def seconds(command: list[str]) -> float:
    """Wall time of a process that must succeed."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        cache = make_cache(Path(folder))
        command = [sys.executable, "-m", "cachekd_cli"]
        runs = {
            "python_alone": [sys.executable, "-c", "pass"],
            "help": [*command, "--help"],
            "inspect": [*command, "inspect", str(cache)],
            "import_torch": [sys.executable, "-c", "import torch"],
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, run in runs.items():
                times[name].append(seconds(run))
    medians = {name: median(values) for name, values in times.items()}
    save(
        "startup",
        {
            "seconds_median": medians,
            "inspect_over_import_torch": round(medians["inspect"] / medians["import_torch"], 3),
            "target_seconds": 1.0,
            "target_met": max(medians["help"], medians["inspect"]) < 1.0,
        },
    )


if __name__ == "__main__":
    main()
