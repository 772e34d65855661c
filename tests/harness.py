"""Scripts of the fault harness, each in a process of its own: it forks, so no thread may run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


def can_trace() -> bool:
    """Whether strace is there, and processes may be traced."""
    try:
        done = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True)
    except FileNotFoundError:
        return False
    return done.returncode == 0


def ran(script: str, *args: object, timeout: float = 280) -> dict[str, Any]:
    """What a script of the harness found."""
    done = subprocess.run(
        [sys.executable, str(TESTS / script), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
