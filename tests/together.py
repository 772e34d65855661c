"""Processes that train together, as torchrun starts them, for little: forks that import nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from forking import Ended, Forked, command


def _alone_no_more(environment: Mapping[str, str]) -> None:
    """What accelerate remembers of the tests' own process is not of this one."""
    from accelerate.state import AcceleratorState

    os.environ.update(environment)
    AcceleratorState._reset_state(reset_partial_state=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def together(
    count: int,
    folder: Path,
    *args: object,
    before: Callable[[], None] | None = None,
    **environment: str,
) -> list[Ended]:
    """Run the command line in this many processes, and wait for all of them.

    Args:
        count: of processes; 1 is one that was started without torchrun.
        folder: takes what they print.
        args: of the command.
        before: run in each process before the command.
        environment: of each process.
    """
    run = command(*args)

    def start() -> None:
        if before is not None:
            before()
        run()

    return all_of(count, folder, start, **environment)


def all_of(count: int, folder: Path, run: Callable[[], None], **environment: str) -> list[Ended]:
    """As `together`, of a function that every process runs."""
    import transformers  # noqa: F401 (imported once, not once a process)

    import cachekd.training.trainer  # noqa: F401

    port = str(_free_port())

    def of(rank: int) -> Callable[[], None]:
        places = (
            {}
            if count == 1
            else {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
        )

        def start() -> None:
            _alone_no_more({**places, **environment})
            run()

        return start

    forked = [Forked(of(rank), folder / f"rank-{rank}") for rank in range(count)]
    return [one.end() for one in forked]
