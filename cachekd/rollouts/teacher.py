"""The live teacher of a run: found and compared with the student before a weight is loaded.

Comes in: settings of a run and the student's folder. Goes out: a `LiveTeacher`, which scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cachekd.teachers import Selection, Teacher


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LiveTeacher:
    """A teacher that answers.

    Attributes:
        teacher: what scores.
        source: who it is, as the facts that a source id is a digest of.
        scores_id: digest of the source and of what is kept: address of its scores.
        selection: what is kept of each row.
        context_length: longest document in tokens.
        model: the model in this process, or None where it is elsewhere.
    """

    teacher: Teacher
    source: Mapping[str, Any]
    scores_id: str
    selection: Selection
    context_length: int
    model: Any | None
