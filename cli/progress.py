"""Progress on stderr: a rich bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import click


class _Pace:
    """How fast work is, from the first thing done on: what is loaded before it tells nothing."""

    def __init__(self, start: int) -> None:
        self._start = start
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int, seconds: float) -> float | None:
        """Things a second, or None as long as one is done."""
        if self._first is None and done > self._start:
            self._first = (done, seconds)
        if self._first is None or done <= self._first[0]:
            return None
        return (done - self._first[0]) / max(seconds - self._first[1], 1e-9)


def pace_text(rate: float | None, unit: str) -> str:
    """A rate in words, to two digits where it is small; how long one takes where it is below 1."""
    if rate is None:
        return ""
    if rate < 1:
        return f"{_two_digits(1 / rate)} s/{unit.removesuffix('s')}"
    return f"{_two_digits(rate)} {unit}/s"


def _two_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


class TokenProgress:
    """Progress over tokens on stderr: a rich bar on a terminal, plain lines elsewhere."""

    _EVERY = 10.0

    def __init__(self, what: str, unit: str = "tokens") -> None:
        self._what = what
        self._unit = unit
        self._bar: Any = None
        self._task: Any = None
        self._last = 0.0
        self._pace = _Pace(0)
        if sys.stderr.isatty():
            self._bar = _rich_bar("{task.percentage:>3.0f} %  {task.fields[text]}")

    def __call__(self, done: int, total: int, seconds: float) -> None:
        """Show how far the work is."""
        rate = self._pace(done, seconds)
        if rate is None and done >= total:
            rate = done / max(seconds, 1e-9)  # all at once: there is no other figure
        pace = pace_text(rate, self._unit)
        if self._bar is not None:
            if self._task is None:
                self._bar.start()
                self._task = self._bar.add_task(self._what, total=total, text="")
            self._bar.update(self._task, completed=done, total=total, text=pace)
        elif done >= total or time.monotonic() - self._last >= self._EVERY:
            self._last = time.monotonic()
            left = f"{(total - done) / rate:,.0f} s left" if rate and done <= total else ""
            parts = [f"{done:,} of {total:,} {self._unit}", pace, left]
            click.echo(f"{self._what}: " + ", ".join(filter(None, parts)), err=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


class Counted:
    """Progress over things that are counted, timed from its start; leaves the terminal clean."""

    def __init__(self, what: str, unit: str) -> None:
        self._started = time.monotonic()
        self._show = TokenProgress(what, unit)

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *error: object) -> None:
        self._show.close()

    def __call__(self, done: int, total: int) -> None:
        """Show how far the work is."""
        self._show(done, total, time.monotonic() - self._started)


class Stages:
    """Progress over stages of work, one bar after the other; leaves the terminal clean."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._stage = ""
        self._bar: Counted | None = None

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.__exit__()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is; one begins with nothing done, and ends the one before.

        One of nothing in all is work that cannot be counted: it is said when it begins.
        """
        if self._bar is None or stage != self._stage:
            self.__exit__()
            self._stage, self._bar = stage, Counted(stage, self._unit)
            if not total:
                click.echo(f"{stage} ...", err=True)
        if done:
            self._bar(done, total)


class TrainProgress:
    """Progress over steps on stderr, with the figures last logged.

    A rich bar on a terminal; elsewhere a line for every log row, and one now and then between.
    """

    _EVERY = 10.0
    _NOT_SHOWN = frozenset({"epoch", "step", "grad_norm", "total_flos", "train_loss"})

    def __init__(self, what: str) -> None:
        self._what = what
        self._pace: _Pace | None = None
        self._said = time.monotonic()
        self._figures: dict[str, float] = {}
        self._show: _TrainDisplay | None = _TrainDisplay(what) if sys.stderr.isatty() else None

    def __call__(self, step: int, last: int, row: Mapping[str, Any]) -> None:
        """Show a step that is done, or a row of figures at this step."""
        self._pace = self._pace or _Pace(step)
        rate = self._pace(step, time.monotonic())
        pace = pace_text(rate, "steps")
        figures = self._figures_of(row)
        self._figures |= figures
        if self._show is not None:
            self._show.update(step, last, pace, self._figures)
        elif figures or time.monotonic() - self._said >= self._EVERY:
            self._said = time.monotonic()
            left = f"{(last - step) / rate:,.0f} s left" if rate else ""
            parts = [f"step {step:,} of {last:,}", pace, left, _listed(figures)]
            click.echo(f"{self._what}: " + ", ".join(filter(None, parts)), err=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._show is not None:
            self._show.close()

    def _figures_of(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Loss, its parts and the learning rate; not what a row says about the run itself."""
        figures = {
            name: value
            for name, value in row.items()
            if name not in self._NOT_SHOWN
            and not name.endswith(("_runtime", "_per_second", "_time"))
            and isinstance(value, int | float)
        }
        if "learning_rate" in figures:
            figures["lr"] = figures.pop("learning_rate")
        return figures


class _TrainDisplay:
    """A bar, and below it the figures of training and of evaluation."""

    def __init__(self, what: str) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text

        self._bar = _rich_bar("{task.completed:,.0f} of {task.total:,.0f}  {task.fields[text]}")
        self._task = self._bar.add_task(what, total=None, text="", visible=False)
        self._figures = Text()
        self._live = Live(Group(self._bar, self._figures), console=self._bar.console)

    def update(self, step: int, last: int, pace: str, figures: Mapping[str, float]) -> None:
        self._live.start()
        self._bar.update(self._task, completed=step, total=last, text=pace, visible=True)
        held_out = {name: value for name, value in figures.items() if name.startswith("eval_")}
        trained = {name: value for name, value in figures.items() if name not in held_out}
        self._figures.plain = "\n".join(filter(None, [_listed(trained), _listed(held_out)]))

    def close(self) -> None:
        self._live.stop()


def _listed(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _rich_bar(text: str) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(text),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
