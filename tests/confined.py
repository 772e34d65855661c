"""Many hostile inputs in one child process of limited memory, and what each of them cost.

A module of cases has ``cases(cache)``, which gives names with functions that should be refused. The
child tells of each: how it ended, how much memory it took at its peak, and how long it ran.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from cachekd.errors import CachekdError

HANG_SECONDS = 20
_pools: list[Any] = []
MEMORY = 1 << 30  # beyond what the process has when the cases begin


def run_confined(
    module: str, cache: Path, *, every: bool = False, traced: bool = False
) -> dict[str, dict[str, Any]]:
    """Outcome by case, of some or ``every``; ``traced`` counts what Python allocates, slowly."""
    code = f"import confined; confined.main({module!r}, {str(cache)!r}, {every}, {traced})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def main(module: str, cache: str, every: bool, traced: bool) -> None:
    """Run all cases of a module; runs in the child."""
    faulthandler.enable()
    cases = list(importlib.import_module(module).cases(Path(cache), every))
    size = _status("VmSize:")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    found = {}
    for name, case in cases:
        print(name, file=sys.stderr)  # the last one said, should the process die
        found[name] = _outcome(case, traced)
    print(json.dumps(found))


def _outcome(case: Callable[[], object], traced: bool) -> dict[str, Any]:
    gc.collect()
    pool = pa.proxy_memory_pool(pa.system_memory_pool())
    _pools.append(pool)  # what it gave may outlive the case
    pa.set_memory_pool(pool)
    Path("/proc/self/clear_refs").write_text("5")
    resident = _status("VmRSS:")
    if traced:
        tracemalloc.start()
    signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(HANG_SECONDS)
    started = time.monotonic()
    try:
        ended = f"accepted: {case()!r:.80}"
    except CachekdError as error:
        ended = "refused"
        told = str(error)
    except BaseException as error:
        ended = told = f"{type(error).__name__}: {error}"
    else:
        told = ended
    finally:
        signal.alarm(0)
        allocated = (tracemalloc.get_traced_memory()[1] if traced else 0) + pool.max_memory()
        tracemalloc.stop()
    return {
        "ended": ended,
        "told": told[:400],
        "allocated": allocated,
        "resident": _status("VmHWM:") - resident,
        "seconds": time.monotonic() - started,
    }


def _hangs(*args: object) -> None:
    raise TimeoutError(f"more than {HANG_SECONDS} seconds")


def _status(name: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
