"""Loader workers killed at random moments: is each named, how soon, does the run go on as if not.

For each kill a process is forked that trains a tiny student from a tiny cache with workers; one of
them is sent SIGKILL at a random moment. Said: seconds from the kill to the end of the process, runs
that hung, runs whose error did not name the worker, entries left in shared memory, and whether the
continued run has the weights of an undisturbed one, bit for bit.

    python benchmarks/worker_kills.py --kills 100
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from common import save
from forking import Forked, command
from runs import capture, weights
from tiny import Family, chat_rows, save_model, save_tokenizer, write_rows

WORKERS = 4
HANG_SECONDS = 120.0
WAYS: dict[str, Sequence[object]] = {
    "persistent": (),
    "not persistent": ("--dataloader-persistent-workers", "false"),
    "prefetch 8": ("--dataloader-prefetch-factor", 8),
    "packed": ("--packing",),
    "evaluated": ("--eval-strategy", "steps", "--eval-steps", 2),
}


def family(folder: Path) -> Family:
    """A teacher and a student."""
    teacher, student = folder / "teacher", folder / "student"
    vocab = save_tokenizer(teacher)
    save_model(teacher, vocab, width=32, layers=2, seed=1)
    shutil.copytree(teacher, student)
    save_model(student, vocab, width=16, layers=1, seed=2)
    return Family(teacher, student, vocab)


def workers_of(process: Forked) -> list[int]:
    """Its loader workers: torch names them."""
    found = []
    for pid in process.children():
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            continue
        if name == "pt_data_worker":
            found.append(pid)
    return found


def killed(
    run: Callable[[], None], log: Path, wait: float, chance: random.Random
) -> dict[str, Any]:
    """One run, one of whose workers is killed so many seconds after they are there."""
    process = Forked(run, log)
    process.until(lambda: len(workers_of(process)) == WORKERS)
    time.sleep(wait)
    there = workers_of(process)
    if not there or process.ended():
        return {"late": True, "ended": process.end(HANG_SECONDS)}
    victim = chance.choice(there)
    os.kill(victim, signal.SIGKILL)
    at = time.monotonic()
    try:
        ended = process.end(HANG_SECONDS)
    except AssertionError:
        return {"hung": True}
    seconds = time.monotonic() - at
    last = ended.lines[-1] if ended.lines else ""
    return {
        "late": ended.code == 0,  # it was at its end: no step needed the worker
        "seconds": seconds,
        "code": ended.code,
        "named": f"(pid {victim}) was killed by SIGKILL" in last,
        "told": "samples" in last or "before it read" in last,
        "trace": "Traceback" in ended.err,
        "left": [name for name in os.listdir("/dev/shm") if name.startswith(f"torch_{victim}_")],
        "last": last,
    }


def way(folder: Path, name: str, flags: Sequence[object], kills: int, seed: int) -> dict[str, Any]:
    """So many kills of runs of one kind; each run is continued until its worker is killed again."""
    chance, found = random.Random(seed), []
    common = (*flags, "--dataloader-num-workers", WORKERS)
    out, log = folder / "parts", folder / "log"
    started = time.monotonic()
    calm = Forked(command(*common, "--output-dir", folder / "calm"), log)
    calm.until(lambda: len(workers_of(calm)) == WORKERS)
    begun = time.monotonic()
    assert calm.end().code == 0, name
    lasts, whole = time.monotonic() - begun, weights(folder / "calm")
    same = finished = 0
    run = command(*common, "--output-dir", out, "--resume-from-checkpoint", "true")
    while len(found) < kills:
        one = killed(run, log, chance.uniform(0, 0.8 * lasts), chance)
        if not one.get("late"):
            found.append(one)
            print(
                name, len(found), one.get("seconds"), one.get("last"), file=sys.stderr, flush=True
            )
        if one.get("late") or len(found) == kills:
            assert Forked(run, log).end().code == 0, "the next start works"
            parts = weights(out)
            same += all(torch.equal(value, parts[key]) for key, value in whole.items())
            finished += 1
            shutil.rmtree(out)
    return {
        "kills": len(found),
        "hung": sum(one.get("hung", False) for one in found),
        "exit_code_1": sum(one.get("code") == 1 for one in found),
        "named_with_pid": sum(one.get("named", False) for one in found),
        "named_with_samples": sum(one.get("told", False) for one in found),
        "with_a_trace": sum(one.get("trace", False) for one in found),
        "left_in_shared_memory": sum(len(one.get("left", [])) for one in found),
        "seconds_to_the_end_max": round(max(one.get("seconds", HANG_SECONDS) for one in found), 2),
        "runs_finished_after_kills": finished,
        "of_these_with_equal_weights": same,
        "seconds_of_all": round(time.monotonic() - started, 1),
        "unnamed": [one.get("last", "") for one in found if not one.get("named")],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Imported before the forks.
    import transformers.trainer  # noqa: F401

    import cachekd.training.build
    import cachekd.training.on_policy  # noqa: F401

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        models = family(root)
        capture(models, write_rows(root / "data.jsonl", chat_rows(64)), root / "cache")
        capture(models, write_rows(root / "held.jsonl", chat_rows(12, 200)), root / "held")
        ways = {}
        for number, (kind, further) in enumerate(WAYS.items()):
            share = arguments.kills // len(WAYS) + (number < arguments.kills % len(WAYS))
            (root / str(number)).mkdir()
            flags = (
                *("train", "--cache", f"main={root / 'cache'}", "--student", models.student),
                *("--max-steps", 40, "--use-cpu", "true", "--learning-rate", 0.01),
                *("--per-device-train-batch-size", 2, "--save-steps", 4, "--save-total-limit", 2),
                *(("--eval-cache", root / "held") if kind == "evaluated" else ()),
                *further,
            )
            ways[kind] = way(root / str(number), kind, flags, share, arguments.seed + number)
    totals = {
        key: sum(result[key] for result in ways.values())
        for key in ways["persistent"]
        if key not in ("seconds_to_the_end_max", "unnamed")
    }
    totals["seconds_to_the_end_max"] = max(r["seconds_to_the_end_max"] for r in ways.values())
    save("worker_kills", {"workers": WORKERS, "all": totals, "ways": ways})


if __name__ == "__main__":
    main()
