"""The same capture as a process of its own under strace: what the system was asked to do.

``python tests/syscalls.py order`` counts names that were published before their bytes, or their
folder's names before them, were synced; with ``--no-sync`` the system does nothing for a sync, and
with ``--eatmydata`` the C library asks for none: then the count must not be 0. ``kill`` kills the
process at some of its syncs, links and renames, and lets the same command continue.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from crashes import Workload, bench, check_partial, check_whole, forked, progress, report

ROWS = 12
CALLS = "fsync,linkat,renameat,renameat2"
_FILE = re.compile(r"^\d+ +(write|fsync)\(\d+<([^>]+)>")
_NAMES = re.compile(r'^\d+ +(?:linkat|renameat2?)\(\d+<([^>]+)>, "([^"]+)", \d+<[^>]+>, "([^"]+)"')


def job(root: Path, cache: Path, *options: str, tool: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command into a cache under strace with these options."""
    run = [sys.executable, __file__, "run", str(root), str(cache)]
    if tool:  # the tracer traces the tool too
        run.insert(0, tool)
    return subprocess.run(
        ["strace", "-f", "-y", "-s", "0", *options, *run],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def out_of_order(log: str, cache: Path) -> tuple[int, int]:
    """Names that were published, and how many of them before what must come first.

    Bytes are synced before they get their name, and the folder before anything else gets one: a
    commit record comes after the names of the shards that it tells of are sure.
    """
    dirty: set[str] = set()
    unsure: set[str] = set()
    published = wrong = 0
    for line in log.splitlines():
        if not line.rstrip().endswith("= 0") and " write(" not in line:
            continue
        if found := _FILE.match(line):
            call, path = found.groups()
            if call == "write":
                dirty.add(path)
            else:
                dirty.discard(path)
                unsure.discard(path)
        elif found := _NAMES.match(line):
            folder, old, _ = found.groups()
            if Path(folder).is_relative_to(cache):
                published += 1
                wrong += f"{folder}/{old}" in dirty or bool(unsure)
                unsure.add(folder)
    return published, wrong + bool(unsure)


def order(root: Path, tool: str, *, syncs: bool) -> tuple[int, int]:
    """What `out_of_order` finds in one run."""
    log, cache = root / "log", root / "traced"
    nothing = [] if syncs else ["-e", "inject=fsync:retval=0"]
    done = job(root, cache, "-e", f"trace=write,{CALLS}", *nothing, "-o", str(log), tool=tool)
    assert done.returncode == 0, done.stderr
    return out_of_order(log.read_text(), cache)


def kill(
    root: Path, workload: Workload, truth: dict[str, str], points: int, part: tuple[int, int]
) -> dict[str, int]:
    """Kill at evenly spread calls, one kind after another; then the command continues.

    Of these points a part is taken: every so-manieth from a first one on.
    """
    log = root / "log"
    job(root, root / "traced", "-e", f"trace={CALLS}", "-o", str(log))
    counts = {call: len(re.findall(rf" {call}\(", log.read_text())) for call in CALLS.split(",")}
    every = [(call, number + 1) for call, count in counts.items() for number in range(count)]
    done = dict.fromkeys(counts, 0)
    for at in range(part[0], points, part[1]):
        call, number = every[at * (len(every) - 1) // max(1, points - 1)]
        cache = root / f"cache-{at}"
        inject = f"inject={call}:signal=SIGKILL:when={number}"
        dead = job(root, cache, "-e", f"trace={call}", "-e", inject, "-o", "/dev/null")
        assert dead.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), (call, number, dead)
        check_partial(cache)
        again = forked(lambda cache=cache: workload.run(cache))
        assert again.code == 0, (call, number, again)
        check_whole(cache, truth)
        shutil.rmtree(cache)
        done[call] += 1
        progress(f"killed at {call} {number}")
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=["order", "kill", "run"])
    parser.add_argument("place", nargs="*")
    parser.add_argument("--points", type=int, default=24)
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("FIRST", "STEP"))
    parser.add_argument("--no-sync", action="store_true")
    parser.add_argument("--eatmydata", action="store_true")
    args = parser.parse_args()
    if args.mode == "run":
        root, cache = map(Path, args.place)
        Workload(root / "teacher", root / "data.jsonl", 200).run(cache)
        return
    with bench(ROWS) as (root, workload, truth, _):
        if args.mode == "order":
            tool = "eatmydata" if args.eatmydata else ""
            published, wrong = order(root, tool, syncs=not args.no_sync)
            report(published=published, wrong=wrong)
        else:
            report(done=kill(root, workload, truth, args.points, tuple(args.part)))


if __name__ == "__main__":
    main()
