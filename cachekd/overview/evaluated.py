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


def evaluated(files: Sequence[str], runs: Sequence[Run]) -> dict[str, dict[str, float | None]]:
    """Metrics of each run that a report tells of, named `PREFIX` and the metric.

    Raises:
        DataError: a file is no such report, is of none of the runs, or tells of one that another
            file tells of too.
    """
    places = {Path(run.folder).resolve(): run.name for run in runs}
    found: dict[str, dict[str, float | None]] = {}
    for file in files:
        own = {places[place]: metrics for place, metrics in _models(Path(file)) if place in places}
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
        found |= own
    return found


def _models(path: Path) -> list[tuple[Path, dict[str, float | None]]]:
    report = read_json(path)
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
