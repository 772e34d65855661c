"""What commands print: results on stdout, progress and logs on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import click


def emit(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a result: one JSON object, or a line a value."""
    if as_json:
        click.echo(json.dumps(result, sort_keys=True, default=str))
        return
    width = max((len(key) for key in result), default=0)
    for key, value in result.items():
        click.echo(f"{key.replace('_', ' '):<{width}}  {_text(key, value)}")


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.startswith("bytes") and isinstance(value, int):
        return f"{value:,} ({value / 1e6:,.1f} MB)"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_text(k, v)}" for k, v in value.items()) or "none"
    return str(value)


class TokenProgress:
    """Progress over tokens on stderr: a rich bar on a terminal, plain lines elsewhere."""

    _EVERY = 10.0

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None
        self._task: Any = None
        self._last = 0.0
        if sys.stderr.isatty():
            self._bar = _rich_bar()

    def __call__(self, done: int, total: int, seconds: float) -> None:
        """Show how far the work is."""
        rate = done / max(seconds, 1e-9)
        if self._bar is not None:
            if self._task is None:
                self._bar.start()
                self._task = self._bar.add_task(self._what, total=total, rate="")
            self._bar.update(self._task, completed=done, rate=f"{rate:,.0f} tokens/s")
        elif done >= total or time.monotonic() - self._last >= self._EVERY:
            self._last = time.monotonic()
            left = (total - done) / max(rate, 1e-9)
            click.echo(
                f"{self._what}: {done:,} of {total:,} tokens, {rate:,.0f} tokens/s, "
                f"{left:,.0f} s left",
                err=True,
            )

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
