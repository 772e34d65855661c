"""What a run wrote, kept as a cache: a log while it trains, samples with targets when it ends.

In: rollouts as they are made, by each process to a file of its own in the output folder. Out: a
sealed cache (`cachekd.rollouts.keep`). A draw that a continued run made again counts once.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cachekd.errors import CorruptCache
from cachekd.rollouts import Rollout, Scores
from cachekd.rollouts.keep import keep, sample_of
from cachekd.types import Sample

if TYPE_CHECKING:
    from cachekd.rollouts.teacher import LiveTeacher
    from cachekd.training.prompts import Prompts

FOLDER = "rollouts"
_log = logging.getLogger(__name__)


class RolloutLog:
    """Appends the text of a process to ``rollouts/<rank>.jsonl``, a line a response."""

    def __init__(self, output: Path, rank: int) -> None:
        self._path = output / FOLDER / f"{rank}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():  # a process that was killed may have left a part of a line
            whole = self._path.read_bytes().rpartition(b"\n")
            os.truncate(self._path, len(whole[0]) + len(whole[1]))

    def __call__(self, rollouts: Sequence[Rollout]) -> None:
        """Append."""
        lines = [
            json.dumps(
                {
                    "sample": rollout.sample,
                    "number": rollout.number,
                    "prompt_length": rollout.prompt_length,
                    "input_ids": rollout.input_ids.tolist(),
                    "corrections": list(rollout.corrections),
                }
            )
            for rollout in rollouts
        ]
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n".join([*lines, ""]))


def keep_log(
    output: Path,
    prompts: Prompts,
    scores: Scores,
    teacher: LiveTeacher,
    url: str,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Write what the logs hold to a cache; see `cachekd.rollouts.keep.keep`.

    Raises:
        CorruptCache: a line of a log cannot be read.
    """
    samples = [_sample(row, prompts) for row in _logged(output / FOLDER)]
    if not samples:
        _log.warning("keep_rollouts: the student wrote nothing in this run; no cache is made")
        return {"cache": None, "samples": 0}
    return keep(samples, scores, teacher, url, provenance)


def _logged(folder: Path) -> list[dict[str, Any]]:
    """Responses of all processes, in the order of their draws, each draw once."""
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            try:
                row = json.loads(line)
                rows[row["number"], row["sample"]] = row
            except (ValueError, KeyError, TypeError) as error:
                raise CorruptCache(f"{path} line {number + 1} cannot be read: {error}") from error
    return [rows[place] for place in sorted(rows)]


def _sample(row: dict[str, Any], prompts: Prompts) -> Sample:
    (record,) = prompts.samples.records([row["sample"]])
    roles = record.roles[: row["prompt_length"]]
    ids = np.array(row["input_ids"], np.int32)
    return sample_of(ids, roles, record.domain, record.weight, int(row["sample"]))
