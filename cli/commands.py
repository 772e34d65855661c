"""The group ``cachekd``: finds its commands by file, when they are used.

Nothing heavy is imported before a command runs: ``cachekd --help`` needs click alone.
"""

from __future__ import annotations

import importlib
import keyword
import logging

import click

from cachekd import __version__

COMMANDS = (
    "plan",
    "precompute",
    "train",
    "evaluate",
    "inspect",
    "verify",
    "seal",
    "merge",
    "gc",
    "push",
    "pull",
    "ls",
    "import",
    "export",
    "benchmark",
    "serve-teacher",
    "report",
    "limits",
    "demo",
)


class LazyGroup(click.Group):
    """A group whose commands are modules of this package, imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        name += "_" * keyword.iskeyword(name)  # a module cannot be called import
        module = importlib.import_module(f".{name}", package=__package__)
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with their first lines."""
        rows = []
        for name in COMMANDS:
            command = self.get_command(ctx, name)
            assert command is not None
            rows.append((name, command.get_short_help_str(limit=80)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cachekd")
def group() -> None:
    """Offline two-stage logit caching for knowledge distillation of language models.

    \b
    cachekd precompute --teacher M --data D --cache C     run the teacher once
    cachekd train --cache C --student M --output-dir O    train, no teacher loaded

    Exit codes: 0 done, 1 failed, 2 usage, 3 incomplete but resumable, 4 corruption found,
    5 refused as a wrong pair.
    """  # noqa: D301 (click wants the backspace character itself)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
