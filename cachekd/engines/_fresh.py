"""Fresh interpreters: the same Python and import path, and nothing of the folder they start in.

In: a module. Out: what `subprocess.Popen` is given.
"""

from __future__ import annotations

import os
import sys


def interpreter(module: str, *arguments: str) -> list[str]:
    """The command that runs a module; files of the current folder do not take a module's place."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(**further: str) -> dict[str, str]:
    """The environment of this process, with its import path and further variables."""
    path = os.pathsep.join(part or os.getcwd() for part in sys.path)
    return {**os.environ, **further, "PYTHONPATH": path}
