"""Teachers that die or fail on chosen documents, in whatever process they are loaded.

Backends of other processes are named ``faulty_teachers:NAME``. What they are to do stands in the
folder that ``FAULTS`` names: files ``error``, ``memory`` and ``death``, each with the key of a
document which gives them an error, no memory, or their end.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from cachekd.data.digests import sample_key
from cachekd.errors import TeacherError
from cachekd.teachers.dummy import DummyTeacher

FOLDER = "FAULTS"


class Faulty(DummyTeacher):
    """A dummy teacher, slow enough to be killed at work."""

    @staticmethod
    def load(*_: Any) -> Faulty:
        return Faulty()

    def score(self, documents: Any, *args: Any) -> Any:
        folder = Path(os.environ[FOLDER])
        (folder / f"at-work-{os.getpid()}").touch()
        keys = {sample_key(ids).hex() for ids in documents}
        if _named(folder / "death") in keys:
            os.kill(os.getpid(), signal.SIGKILL)
        if _named(folder / "memory") in keys:
            raise MemoryError("injected: it is too large")
        if _named(folder / "error") in keys:
            raise TeacherError("injected: it does not like this document")
        time.sleep(0.05)
        return super().score(documents, *args)


def _named(path: Path) -> str | None:
    return path.read_text() if path.exists() else None
