"""Records of training runs, as ``cachekd train`` writes them, read back and checked.

In: output folders. Out: `Run`s. A record of a run that was stopped has no final figures, one of a
run that was killed has no history either; both can be looked at. What is no record is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachekd.errors import ConfigError, DataError
from cachekd.training.record import RECORD

_MOST_BYTES = 1 << 28
_FIELDS: Mapping[str, type] = {
    "status": str,
    "config": dict,
    "objective": dict,
    "caches": list,
    "training_arguments": dict,
    "versions": dict,
    "counts": dict,
}
_OPTIONAL: Mapping[str, type] = {
    "steps": int,
    "student": str,
    "final_eval": dict,
    "throughput": dict,
    "rollouts": dict,
    "eval_cache": dict,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """A training run.

    Attributes:
        name: short and different for each run of a report.
        folder: where it is.
        facts: the record.
        history: figures of each log row, among them ``step``.
    """

    name: str
    folder: str
    facts: Mapping[str, Any]
    history: tuple[Mapping[str, float], ...]


def load_runs(paths: Sequence[str]) -> tuple[Run, ...]:
    """The runs of these output folders, in this order.

    Raises:
        ConfigError: a run is named twice.
        DataError: a record cannot be read, or is none.
    """
    folders = [Path(path).parent if Path(path).name == RECORD else Path(path) for path in paths]
    places = [folder.resolve() for folder in folders]
    for place in places:
        if places.count(place) > 1:
            raise ConfigError(f"{place} is named twice; name each run once")
    return tuple(_load(folder, name) for folder, name in zip(folders, _names(places), strict=True))


def _names(places: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell them apart."""
    for parts in range(1, max(len(place.parts) for place in places)):
        names = ["/".join(place.parts[-parts:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def _load(folder: Path, name: str) -> Run:
    path = folder / RECORD
    facts = read_json(path)
    _check(path, facts)
    return Run(name=name, folder=str(folder), facts=facts, history=_history(path, facts))


def read_json(path: Path) -> Any:
    """A JSON value; numbers may be NaN, as a log has them.

    Raises:
        DataError: it cannot be read, or is too large.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes; at most {_MOST_BYTES} are read")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error


def _check(path: Path, facts: Any) -> None:
    expected = f"{path}: expected the record of a run, as cachekd train writes it"
    if not isinstance(facts, dict):
        raise DataError(f"{expected}; found {type(facts).__name__}")
    for field, kind in _FIELDS.items():
        if not isinstance(facts.get(field), kind):
            found = type(facts[field]).__name__ if field in facts else "none"
            raise DataError(f"{expected}, with {field} ({kind.__name__}); found {found}")
    if not all(isinstance(cache, dict) for cache in facts["caches"]):
        raise DataError(f"{expected}, with facts of each cache")
    for field, kind in _OPTIONAL.items():
        if not isinstance(facts.get(field), kind | None):
            raise DataError(f"{expected}, with {field} ({kind.__name__} or nothing)")
    rollouts = facts.get("rollouts") or {}
    if not all(isinstance(rollouts.get(part, {}), dict) for part in ("scores", "seconds")):
        raise DataError(f"{expected}, with what the rollouts cost")


def _history(path: Path, facts: Mapping[str, Any]) -> tuple[Mapping[str, float], ...]:
    """Figures of each log row; what is no number is left out of it."""
    rows = facts.get("history", [])
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected history to be a list; found {type(rows).__name__}")
    found = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not _number(row.get("step")):
            raise DataError(f"{path}: log row {number} has no step: {row!r:.100}")
        found.append({key: _float(value) for key, value in row.items() if _number(value)})
    return tuple(found)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")
