"""The score cache before a live teacher: no sequence is scored twice, by any run that shares it.

In: documents, first rows and given ids. Out: targets, always as the store's bytes decode, so that a
hit and a miss are the same numbers. What is missing is scored in batches sorted by length, each
document from its first missing block on.

Of the store only that is seen which was there when it was opened, and what this process wrote: what
others write meanwhile would change, by its time of arrival, which documents share a batch, and so
the last bits of a run. A resumed run sees what its checkpoint saw, for the same reason.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cachekd.errors import ConfigError
from cachekd.rollouts.blocks import Block, assemble, blocks_of, codec_of, encode
from cachekd.rollouts.misses import Miss, batches, misses, score_batch, shown
from cachekd.rollouts.teacher import LiveTeacher
from cachekd.store.scores import ScoreStore
from cachekd.types import Int32, TopKLogits


class CachedScores:
    """A live teacher whose answers are kept; see `cachekd.rollouts.Scores`.

    Args:
        teacher: what scores.
        folder: local folder of the score cache; runs may share one.
        batch_tokens: token budget of a teacher batch (rows x padded length).

    Raises:
        ConfigError: the folder is not local.
        MismatchError: the folder's scores with this id are of another teacher.
    """

    def __init__(self, teacher: LiveTeacher, folder: str | Path, batch_tokens: int) -> None:
        self._teacher = teacher
        self._store = ScoreStore(str(folder), teacher.scores_id, teacher.facts)
        self._codec = codec_of(teacher.selection)
        self._batch_tokens = batch_tokens
        self._counts: Counter[str] = Counter()
        self._seconds = {"teacher": 0.0, "cache": 0.0}

    def score(
        self,
        documents: Sequence[Int32],
        first_rows: Sequence[int],
        given: Sequence[Int32 | None] | None = None,
    ) -> list[TopKLogits]:
        """See `cachekd.rollouts.Scores.score`; rows before the first one that is wanted are empty.

        Raises:
            ConfigError: a document is longer than the teacher's context, or has no wanted row.
            TeacherError: the teacher cannot be reached, gave NaN, or has no memory for a document.
            StoreError: the disk takes no more.
        """
        started, taught = time.monotonic(), self._seconds["teacher"]
        self._check(documents, first_rows)
        given = given or [None] * len(documents)
        asked = [blocks_of(*one) for one in zip(documents, first_rows, given, strict=True)]
        values = self._held(asked)
        held = set(values)
        work = misses(documents, first_rows, given, asked, held)
        self._count(documents, first_rows, asked, held, work)
        for batch, padded_length in batches(work, self._batch_tokens):
            made = self._encoded(batch, padded_length, values)
            self._store.put(made.items())
            self._counts["bytes_stored"] += sum(map(len, made.values()))
            values |= made
        found = [
            assemble(self._codec, blocks, values, first_row)
            for blocks, first_row in zip(asked, first_rows, strict=True)
        ]
        taught = self._seconds["teacher"] - taught
        self._seconds["cache"] += time.monotonic() - started - taught
        return found

    def figures(self) -> dict[str, Any]:
        """What was asked, scored and saved, and what of the store could not be read."""
        counts = {name: self._counts[name] for name in _COUNTED}
        rows = counts["rows"]
        return {
            **counts,
            "hit_rate": round(counts["rows_cached"] / rows, 6) if rows else 0.0,
            "seconds_teacher": round(self._seconds["teacher"], 3),
            "seconds_cache": round(self._seconds["cache"], 3),
            "records_damaged": self._store.damaged,
        }

    def state(self) -> dict[str, Any]:
        """Counters, and what is seen of the store."""
        return {
            "counts": dict(self._counts),
            "seconds": dict(self._seconds),
            "seen": self._store.seen(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Count on from a state, and see of the store what it saw."""
        self._counts = Counter(state["counts"])
        self._seconds = dict(state["seconds"])
        self._store.see_only(state["seen"])

    def flush(self) -> None:
        """Make sure that what was scored outlives the process, and a loss of power.

        Raises:
            StoreError: the disk takes no more.
        """
        self._store.flush(sync=True)

    def close(self) -> None:
        """Write what is buffered and let the store go.

        Raises:
            StoreError: the disk takes no more.
        """
        self._store.close()

    def _check(self, documents: Sequence[Int32], first_rows: Sequence[int]) -> None:
        limit = self._teacher.context_length
        for ids_L, first_row in zip(documents, first_rows, strict=True):
            if len(ids_L) > limit:
                raise ConfigError(
                    f"a document of {len(ids_L)} tokens ({shown(ids_L)}): expected at most "
                    f"{limit}, the context of the live teacher. Lower --max-new-tokens, or leave "
                    "long prompts out with --max-length"
                )
            if not 0 <= first_row < len(ids_L) - 1:
                raise ConfigError(
                    f"a document of {len(ids_L)} tokens: expected a first row from 0 to "
                    f"{len(ids_L) - 2}; found {first_row}"
                )

    def _held(self, asked: Sequence[Sequence[Block]]) -> dict[bytes, bytes]:
        """Values of the blocks that the store holds."""
        keys = list(dict.fromkeys(block.key for blocks in asked for block in blocks))
        found = zip(keys, self._store.get(keys), strict=True)
        return {key: value for key, value in found if value is not None}

    def _count(
        self,
        documents: Sequence[Int32],
        first_rows: Sequence[int],
        asked: Sequence[Sequence[Block]],
        held: set[bytes],
        work: Sequence[Miss],
    ) -> None:
        computed = sum(len(item.ids_L) for item in work)
        cached = (
            block.stop - max(block.start, first_row)
            for blocks, first_row in zip(asked, first_rows, strict=True)
            for block in blocks
            if block.key in held
        )
        self._counts["documents"] += len(documents)
        self._counts["documents_scored"] += len(work)
        self._counts["rows"] += sum(map(_rows, documents, first_rows))
        self._counts["rows_cached"] += sum(cached)
        self._counts["rows_scored"] += sum(_rows(item.ids_L, item.first_row) for item in work)
        self._counts["teacher_tokens"] += computed
        self._counts["teacher_tokens_saved"] += sum(map(len, documents)) - computed

    def _encoded(
        self, batch: Sequence[Miss], padded_length: int, known: Mapping[bytes, bytes]
    ) -> dict[bytes, bytes]:
        """Values of the blocks of a batch that are not known: a value once given stays."""
        started = time.monotonic()
        try:
            scored = score_batch(self._teacher, batch, padded_length)
        finally:
            self._seconds["teacher"] += time.monotonic() - started
        made: dict[bytes, bytes] = {}
        for item, targets in zip(batch, scored, strict=True):
            for block in item.blocks:
                if block.key not in known and block.key not in made:
                    made[block.key] = encode(self._codec, targets, block)
        return made


_COUNTED = (
    "documents",
    "documents_scored",
    "rows",
    "rows_cached",
    "rows_scored",
    "teacher_tokens",
    "teacher_tokens_saved",
    "bytes_stored",
)


def _rows(ids_L: Int32, first_row: int) -> int:
    return len(ids_L) - 1 - first_row
