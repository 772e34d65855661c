"""The writer's process: scored units in on standard input, commits out on standard output.

``python -m cachekd.engines._writer_process``; started by `cachekd.engines._writers`. It ends when
its input does, whatever signal reaches it: a unit that was handed over is finished.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from typing import IO

from cachekd.engines._frames import Done, receive_sink, receive_unit, send_answer
from cachekd.store.commit import write_unit
from cachekd.store.io import Location
from cachekd.store.priors import Priors
from cachekd.store.retries import counted, since


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
        sink = receive_sink(units)
        location = Location(sink.url)
        priors, named = Priors(location), sink.header.prior
        while True:
            unit = receive_unit(units)
            started, before = time.monotonic(), counted()
            try:
                write_unit(sink, location, unit, priors.get(named) if named else None)
            except Exception as error:  # whatever it is, the teacher's process raises it
                send_answer(answers, error, traceback.format_exc())
            else:
                happened = since(before)
                send_answer(answers, Done(time.monotonic() - started, happened))
            del unit  # before the next one comes
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    main()
