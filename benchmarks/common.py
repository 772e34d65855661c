"""What the benchmark scripts share: where results go, and on what machine they were taken."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, threads and versions."""
    return {
        "cpus": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "pyarrow", "numpy")},
    }


def resident(what: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM, the peak since `forget_peak` (Linux)."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def forget_peak() -> None:
    """Start the peak anew: loading a model takes more than it holds."""
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")


def median(values: list[float]) -> float:
    """Median, four significant digits."""
    return float(f"{statistics.median(values):.4g}")


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, forked from this one."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


def save(name: str, result: dict[str, Any], folder: Path = RESULTS, *, keep: bool = True) -> None:
    """Print a result, and write ``<folder>/<name>.json`` with the command that made it."""
    content = {
        "command": "python " + " ".join([_script(), *_arguments()]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        **result,
    }
    text = json.dumps(content, indent=1, sort_keys=True)
    if keep:
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(text + "\n")
    print(text)


def _script() -> str:
    """The script that runs, from the root of the project."""
    return str(Path(sys.argv[0]).resolve().relative_to(RESULTS.parents[1]))


def _arguments() -> list[str]:
    """Arguments as given, with paths of this machine left out."""
    return [_told(arg) for arg in sys.argv[1:]]


def _told(argument: str) -> str:
    """An argument, or NAME=PATH, without a path of this machine."""
    name, equals, value = argument.rpartition("=")
    local = os.path.isabs(value) or value.startswith("..")
    return f"{name}{equals}{'DATA' if local else value}"
