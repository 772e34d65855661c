"""The figures of training runs, by the name that a reader knows them by.

In: records of runs, as in ``run.json``. Out: names, curves and values as text, for the page of one
run and for pages that set several side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cachekd.report.svg import Plot, Series
from cachekd.report.text import amount

History = Sequence[Mapping[str, Any]]

CURVES = (("training", ""), ("held-out cache or text", "eval_"), ("held-out text", "eval_text_"))
"""What a figure was measured on, and the prefix of its name in a log row."""
MOST_POINTS = 2000
"""Points of a curve; of a longer one every so manyth is drawn."""

_FIRST = ("loss", "kl", "ce", "tail_mass")
_LAST = ("learning_rate", "grad_norm")
_UNITS = {"loss": "nats a row", "kl": "nats a row", "ce": "nats a row", "tail_mass": "probability"}
_ABOUT_THE_RUN = frozenset(
    "step epoch runtime samples_per_second steps_per_second model_preparation_time "
    "jit_compilation_time num_input_tokens_seen total_flos train_loss train_runtime "
    "train_samples_per_second train_steps_per_second".split()
)


def figures_of(history: History) -> list[str]:
    """Names of the figures that were logged, without ``eval_``: the loss and its parts first."""
    found = {_bare(name) for row in history for name in row} - _ABOUT_THE_RUN
    middle = sorted(found - {*_FIRST, *_LAST})
    return [name for name in (*_FIRST, *middle, *_LAST) if name in found]


def _bare(name: str) -> str:
    return name.removeprefix("eval_").removeprefix("text_")


def curve(history: History, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of what was logged under this very name, thinned to `MOST_POINTS`."""
    points: dict[float, float] = {}
    for row in history:
        if name in row:  # the best student, evaluated at the end, is no further point
            points.setdefault(row["step"], row[name])
    steps, every = list(points), -(-len(points) // MOST_POINTS) or 1
    kept = [step for place, step in enumerate(steps) if place % every == 0 or step == steps[-1]]
    return kept, [points[step] for step in kept]


def plot_of(name: str, series: Sequence[Series], about: str = "") -> Plot:
    """Curves of one figure over the steps."""
    title = name.replace("_", " ") + (f": {about}" if about else "")
    unit = _UNITS.get(name, "")
    return Plot(title=title, x_label="steps", y_label=unit, series=tuple(series))


def held_out(final: Mapping[str, Any] | None) -> dict[str, float]:
    """Figures of the last evaluation, by name; none where there was none."""
    return {
        name: value
        for name, value in sorted((final or {}).items())
        if name.startswith("eval_") and _bare(name) not in _ABOUT_THE_RUN
    }


def rollouts_of(found: Mapping[str, Any] | None) -> dict[str, str]:
    """What the student wrote and what the teacher was asked; nothing for a run from caches."""
    if found is None:
        return {}
    groups = {
        "": found,
        "teacher: ": found.get("scores", {}),
        "seconds: ": found.get("seconds", {}),
    }
    return {
        f"{group}{name.replace('_', ' ')}": f"{value:,.4g}"
        if isinstance(value, float)
        else str(value)
        for group, values in groups.items()
        for name, value in values.items()
        if isinstance(value, int | float)
    }


def throughput_of(used: Mapping[str, Any]) -> dict[str, str]:
    """Time and memory of a run."""
    shown = {
        "seconds of training, without evaluations": f"{used['training_seconds']:,.1f}",
        "tokens a second": f"{used['tokens_per_second']:,.0f}",
        "steps a second": f"{used['steps_per_second']:,.3g}",
        "share of time waiting for data": f"{used['data_wait_share']:.1%}",
        "peak memory": amount(used["peak_memory_bytes"]),
        "processes": f"{used['processes']}",
    }
    if used["peak_cuda_memory_bytes"] is not None:
        shown["peak CUDA memory"] = amount(used["peak_cuda_memory_bytes"])
    return shown


def settings_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """Every setting of a run that is set, by name, with the versions it ran on."""
    config = {name: value for name, value in facts["config"].items() if name != "training"}
    options = facts["objective"]["options"]
    values = {**config, **options, **facts["training_arguments"], "loss_mask": facts["loss_mask"]}
    versions = {f"version of {name}": value for name, value in facts["versions"].items()}
    return {
        name: str(value)
        for name, value in (values | versions).items()
        if value not in (None, "", [], {})
    }
