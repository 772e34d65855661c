"""Kills, faults and lost power at the sizes of a night: the harness of ``tests/`` in full.

Each part is a script of `tests/` that ends in an error at the first run that is wrong, so a result
that is saved says that all of these runs ended as the undisturbed one: same bytes, nothing lost,
nothing twice, verify clean. ``--only`` runs some parts and keeps the figures of the others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import RESULTS, save

TESTS = Path(__file__).parents[1] / "tests"
PARTS: dict[str, list[str]] = {
    "killed at every change of the disk": ["crash_points.py", "kill"],
    "killed in every write": ["crash_points.py", "torn"],
    "one of two killed at every change": ["crash_points.py", "two"],
    "killed twice at random changes": ["crash_points.py", "double", "--times", "200"],
    "full or failing disk at every change": ["crash_points.py", "fail"],
    "files limited in size": ["crash_points.py", "limit"],
    "states after a loss of power": ["powerloss.py", "--rows", "12", "--resume", "3"],
    "the same without syncs": ["powerloss.py", "--no-sync"],
    "order of syncs and names": ["syscalls.py", "order"],
    "the same under eatmydata": ["syscalls.py", "order", "--eatmydata"],
    "killed at system calls": ["syscalls.py", "kill", "--points", "60"],
    "killed at random moments": ["crash_runs.py", "random", "--times", "1000", "--double", "200"],
    "eight processes, two killed": ["crash_runs.py", "many", "--rounds", "10"],
    "a reader looks on": ["crash_runs.py", "reader", "--kills", "6"],
    "other numbers of processes": ["crash_runs.py", "worlds"],
}


def part(script: str, *args: str) -> dict[str, Any]:
    """What a script found, and its seconds."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(TESTS / script), *args], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "command": f"python tests/{script} {' '.join(args)}".strip()} | {
        "seconds": round(time.monotonic() - begun)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    args = parser.parse_args()
    path = RESULTS / "crashes.json"
    found = json.loads(path.read_text())["parts"] if path.exists() else {}
    for name in args.only:
        found[name] = part(*PARTS[name])
        print(name, found[name], file=sys.stderr, flush=True)
        save("crashes", {"parts": {key: found[key] for key in PARTS if key in found}})


if __name__ == "__main__":
    main()
