"""Processes that fill one cache, killed at random moments, and a reader that looks on.

``python tests/crash_runs.py random|many|reader|worlds``; prints one JSON object with counts, and
ends with an AssertionError at the first run that is wrong. ``--seed`` repeats a run's choices.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crashes import (
    Ended,
    Workload,
    bench,
    check_partial,
    check_whole,
    ended,
    progress,
    report,
    start,
)

from cachekd.errors import CacheNotFound
from cachekd.store.reader import open_cache

Act = Callable[[], None]


def run_into(workload: Workload, cache: Path) -> Act:
    """The command."""
    return lambda: workload.run(cache)


def together(acts: list[Act], kills: dict[int, float]) -> list[Ended]:
    """Run in processes at once; those named are killed after so many seconds."""
    running = [start(act) for act in acts]
    begun = time.monotonic()
    for number, seconds in sorted(kills.items(), key=lambda item: item[1]):
        time.sleep(max(0.0, begun + seconds - time.monotonic()))
        os.kill(running[number][0], signal.SIGKILL)  # a zombie where it has ended: no harm
    return [ended(*one) for one in running]


def finished(workload: Workload, cache: Path, truth: dict[str, str], processes: int = 1) -> None:
    """The same command, in some processes, ends in the undisturbed cache."""
    check_partial(cache)
    done = together([run_into(workload, cache)] * processes, {})
    assert all(one.code == 0 for one in done), done
    check_whole(cache, truth)
    shutil.rmtree(cache)


def random_kills(times: int, double: int, draw: random.Random) -> dict[str, Any]:
    """Killed at a random moment; of ``double`` runs also the one that continues."""
    counts: Counter[str] = Counter()
    with bench(rows=12) as (root, workload, truth, _):
        begun = time.monotonic()
        together([run_into(workload, root / "timed")], {})
        seconds = time.monotonic() - begun
        for number in range(times + double):
            cache = root / f"cache-{number}"
            for _ in range(1 + (number >= times)):
                (dead,) = together([run_into(workload, cache)], {0: draw.uniform(0, seconds)})
                assert dead.code in (0, -signal.SIGKILL), dead
                counts["killed" if dead.code else "was quicker"] += 1
            counts["with commits"] += any((cache / "units").glob("*")) if cache.exists() else 0
            finished(workload, cache, truth)
            if number % 100 == 99:
                progress(f"{number + 1} runs")
    return {"runs": times, "double": double, **counts}


def many(rounds: int, draw: random.Random) -> dict[str, Any]:
    """Eight processes of fifty units or more; two are killed. Each unit is scored about once."""
    counts: Counter[str] = Counter()
    with bench(rows=190, unit_tokens=150) as (root, workload, truth, _):
        units = sum(name.startswith("units/") for name in truth)
        assert units >= 50
        for number in range(rounds):
            cache = root / f"cache-{number}"
            victims = {n: draw.uniform(0.05, 1.0) for n in draw.sample(range(8), 2)}
            done = together([run_into(workload, cache)] * 8, victims)
            for n, one in enumerate(done):
                assert one.code == 0 or (n in victims and one.code == -signal.SIGKILL), (n, one)
                counts["killed"] += one.code != 0
            check_whole(cache, truth)  # those that live end it
            finished(workload, cache, truth)
    return {"rounds": rounds, "processes": 8, "units": units, **counts}


def reader(kills: int, draw: random.Random) -> dict[str, Any]:
    """A reader opens the cache over and over while two processes fill it, killed and restarted."""
    with bench(rows=700, unit_tokens=1) as (root, workload, truth, _):
        units = sum(name.startswith("units/") for name in truth)
        assert units >= 500
        whole, cache = open_cache(str(root / "calm")), root / "cache"
        told, over = root / "told", root / "over"
        looking = start(lambda: told.write_text(repr(_look(cache, whole, over))))
        for _ in range(kills):
            victims = {0: draw.uniform(0.3, 1.5), 1: draw.uniform(0.3, 1.5)}
            together([run_into(workload, cache)] * 2, victims)
        together([run_into(workload, cache)] * 2, {})
        over.touch()
        seen = ended(*looking)
        assert seen.code == 0, seen
        check_whole(cache, truth)
        polls, sizes, seconds = map(int, told.read_text().strip("()").split(", "))
    rate = round(polls / max(1, seconds), 1)
    counts = {"units": units, "kills": 2 * kills, "polls": polls, "sizes": sizes}
    return {**counts, "polls_a_second": rate}


def _look(cache: Path, whole: Any, over: Path) -> tuple[int, int, int]:
    """Poll until told; what is there grows, is true, and never changes under an open reader."""
    draw, polls, sizes, before = random.Random(1), 0, set(), set()
    first, begun = None, time.monotonic()
    while not over.exists():
        time.sleep(0.01)
        try:
            opened = open_cache(str(cache), partial=True)
        except CacheNotFound:
            assert not before, "it was there"
            continue
        polls += 1
        now = {bytes(key) for key in opened.sample_ids}
        assert before <= now, "what was committed is gone"
        before = now
        sizes.add(len(now))
        if first is None and len(now) > 20:
            first, kept = opened, len(now)
        for i in draw.sample(range(len(opened)), min(3, len(opened))):
            _same(opened[i], whole)
    assert first is not None and len(first) == kept
    for record in first:
        _same(record, whole)
    return polls, len(sizes), round(time.monotonic() - begun)


def _same(record: Any, whole: Any) -> None:
    true = whole.get(record.input_ids).logits
    assert record.logits.logprobs.tobytes() == true.logprobs.tobytes()
    assert record.logits.ids.tobytes() == true.ids.tobytes()


def worlds(draw: random.Random, sizes: tuple[int, ...] = (1, 2, 3, 4, 8)) -> dict[str, Any]:
    """Killed with one number of processes, continued with another: the same bytes for all pairs."""
    pairs = killed = 0
    with bench(rows=40) as (root, workload, truth, _):
        for before in sizes:
            for after in sizes:
                cache = root / f"cache-{before}-{after}"
                victims = dict.fromkeys(range(before), draw.uniform(0.02, 0.4))
                dead = together([run_into(workload, cache)] * before, victims)
                killed += sum(one.code != 0 for one in dead)
                finished(workload, cache, truth, processes=after)
                pairs += 1
    return {"pairs": pairs, "killed": killed, "sizes": list(sizes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=["random", "many", "reader", "worlds"])
    parser.add_argument("--times", type=int, default=50, help="random: runs that are killed once")
    parser.add_argument("--double", type=int, default=10, help="random: and twice")
    parser.add_argument("--rounds", type=int, default=1, help="many: how often")
    parser.add_argument("--kills", type=int, default=2, help="reader: restarts of the writers")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    if args.mode == "random":
        found = random_kills(args.times, args.double, draw)
    elif args.mode == "many":
        found = many(args.rounds, draw)
    else:
        found = reader(args.kills, draw) if args.mode == "reader" else worlds(draw)
    report(**found)


if __name__ == "__main__":
    main()
