"""What ``cachekd evaluate --json`` found of the students of runs.

In: files with its reports, and runs. Out: for each run its metrics, the mean over the seeds of the
evaluation each. A model belongs to the run whose output folder it was loaded from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cachekd.errors import DataError
from cachekd.overview.record import Run, read_json

PREFIX = "evaluated_"
_WHERE = frozenset(
    "model device device_map teacher_device teacher_device_map batch_tokens out markdown responses"
    " preset".split()
)
"""Settings that say what was loaded where, not how it was judged; of the preset its parts count."""


def evaluated(files: Sequence[str], runs: Sequence[Run]) -> dict[str, dict[str, float | None]]:
    """Metrics of each run that a report tells of, named `PREFIX` and the metric.

    Raises:
        DataError: a file is no such report, is of none of the runs, tells of one that another
            file tells of too, or was evaluated in another way than the first.
    """
    places = {Path(run.folder).resolve(): run.name for run in runs}
    found: dict[str, dict[str, float | None]] = {}
    first: dict[str, Any] = {}
    for file in files:
        report = read_json(Path(file))
        own = {places[at]: metrics for at, metrics in _models(file, report) if at in places}
        if not own:
            raise DataError(
                f"{file} is of none of these runs: expected a model that was loaded from one of "
                f"{', '.join(map(str, places))}"
            )
        twice = sorted(set(own) & set(found))
        if twice:
            raise DataError(
                f"{file}: {twice[0]} is evaluated in another file too; give one of them"
            )
        way = _way(report)
        first = first or way
        for name in first.keys() | way.keys():
            if first.get(name) != way.get(name):
                raise DataError(
                    f"{file}: expected an evaluation as in {files[0]}, with {name} "
                    f"{first.get(name)}; found {way.get(name)}. Means of both would say nothing: "
                    "evaluate all runs in one call"
                )
        found |= own
    return found


def _way(report: Mapping[str, Any]) -> dict[str, Any]:
    """On what models were evaluated, and how."""
    settings = {k: v for k, v in report.get("settings", {}).items() if k not in _WHERE}
    return {**settings, "examples": report.get("data")}


def _models(path: str, report: Any) -> list[tuple[Path, dict[str, float | None]]]:
    try:
        return [
            (Path(model["path"]).resolve(), _means(model["metrics"])) for model in report["models"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: expected the JSON of cachekd evaluate --json, with models, their path and "
            f"metrics; found {error!r:.100}"
        ) from error


def _means(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    return {f"{PREFIX}{name}": metric["mean"] for name, metric in metrics.items()}
