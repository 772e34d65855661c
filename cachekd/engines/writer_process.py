"""The writer's process: scored units in on standard input, commits out on standard output.

``python -m cachekd.engines.writer_process``; started by `cachekd.engines.writers`. It ends when its
input does, whatever signal reaches it: a unit that was handed over is finished.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
import traceback
from typing import IO

from cachekd.engines.frames import receive, send
from cachekd.store.commit import Sink, write_unit
from cachekd.store.io import Location


def main() -> None:
    """Serve units until the input ends. The first frame is the `Sink`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    serve(sys.stdin.buffer, answers)


def serve(units: IO[bytes], answers: IO[bytes]) -> None:
    """Commit each unit; answer with the seconds it took, or with the error."""
    try:
        sink: Sink = receive(units)
        location = Location(sink.url)
        while True:
            unit = receive(units)
            started = time.monotonic()
            try:
                write_unit(sink, location, unit)
            except Exception as error:  # whatever it is, the teacher's process raises it
                send(answers, _portable(error))
            else:
                send(answers, time.monotonic() - started)
            del unit  # before the next one comes
    except (EOFError, BrokenPipeError):
        return


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note, or, where it cannot travel, its text."""
    text = "in a writer's process:\n" + traceback.format_exc()
    try:
        error.add_note(text)
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made in the line above
    except Exception:
        return RuntimeError(text)
    return error


if __name__ == "__main__":
    main()
