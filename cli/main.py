"""The entry point of ``cachekd``: signals and errors become one line and an exit code.

Signals are handled before anything large is imported, click too.
"""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn

from cachekd.errors import EXIT_INCOMPLETE, CachekdError
from cachekd.signals import end_on_signals, ignore_signals

_CONTINUES = "run the same command again to continue"
_ANEW = "nothing was changed; run the same command again to begin anew"
_AFTER = {
    "train": "the same command with --resume-from-checkpoint true continues from the last "
    "checkpoint",
    "serve-teacher": "run the same command again to serve",
    **dict.fromkeys(("inspect", "verify", "plan", "evaluate", "benchmark", "report"), _ANEW),
}


def main() -> None:
    """Run the command line; errors of cachekd end with their message and exit code.

    It owns its process: signals that come when all is done are ignored.
    """
    flag = end_on_signals()
    try:
        code = _run()
    except (KeyboardInterrupt, Exception) as error:
        # An import that is interrupted may fail with an error of its own.
        if not (flag.asked or isinstance(error, KeyboardInterrupt)):
            raise
        ignore_signals()
        _say(f"interrupted; {_AFTER.get(_command(), _CONTINUES)}")
        _leave(EXIT_INCOMPLETE)
    finally:
        ignore_signals()
    sys.exit(code)


def _run() -> int:
    import click

    from .commands import group

    try:
        group(standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort as error:
        raise KeyboardInterrupt from error
    except CachekdError as error:
        _say(str(error))
        return error.exit_code
    return 0


def _leave(code: int) -> NoReturn:
    """End with this code after an interrupt, when all that is registered for the end has run.

    Where Python code that an extension ran was interrupted, the interpreter would end by SIGINT.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or nobody is there to read
            stream.flush()
    os._exit(code)


def _command() -> str:
    """The command that was asked for."""
    return next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")


def _say(text: str) -> None:
    with suppress(OSError):  # nobody may be there to read it; the exit code says the same
        print(f"cachekd: {text}", file=sys.stderr, flush=True)
