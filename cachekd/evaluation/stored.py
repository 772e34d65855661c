"""What a cache's stored targets lose against its teacher, row by row.

In: an open cache, the settings of its teacher, and records. Out: the figures of
`cachekd.evaluation.fidelity` of every captured row, against dense rows that are scored now.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cachekd.capture.job import selection_of
from cachekd.config import RecheckConfig
from cachekd.evaluation.dense import Float64, dense_rows, take
from cachekd.evaluation.fidelity import Unigram, fidelity, references
from cachekd.evaluation.recheck import load_teacher
from cachekd.store.reader import Cache
from cachekd.teachers import Selection, Teacher
from cachekd.types import Int64, Record


def stored_fidelity(
    cache: Cache,
    config: RecheckConfig,
    numbers: Sequence[int],
    told: Callable[[str, int, int], None],
) -> tuple[dict[str, Float64], Int64]:
    """Figures of all captured rows of these records.

    Args:
        cache: open; of a capture that keeps exact heads alone.
        config: its teacher; how many records it says does not matter.
        numbers: of the records.
        told: is told what is done, records done and records in all.

    Returns:
        figures by name, float64 [N] each (see `fidelity`; with ``kl_unigram`` where the cache has
        a prior), and the record that each row is of, by its place among the numbers, int64 [N].

    Raises:
        MismatchError: the teacher is not the cache's; names both sides.
        TeacherError: it cannot be loaded or does not score.
        CorruptCache: a shard is missing or altered.
    """
    told("loading the teacher", 0, 0)
    teacher, _ = load_teacher(cache, config, "report")
    selection, mean = selection_of(cache.identity), cache.unigram()
    unigram = None if mean is None else Unigram.of(np.log(np.maximum(mean, 1e-38)))
    parts: list[dict[str, Float64]] = []
    lengths: list[int] = []
    for place, number in enumerate(numbers):
        found = _figures(teacher, selection, cache[int(number)], unigram)
        parts += found
        lengths.append(sum(len(part["kl_flat"]) for part in found))
        told("scoring with the teacher", place + 1, len(numbers))
    names = parts[0] if parts else ()
    joined = {name: np.concatenate([part[name] for part in parts]) for name in names}
    return joined, np.repeat(np.arange(len(lengths)), lengths).astype(np.int64)


def _figures(
    teacher: Teacher, selection: Selection, record: Record, unigram: Unigram | None
) -> list[dict[str, Float64]]:
    """Figures of the captured rows of a record, a tile of rows after another."""
    rows = np.diff(record.logits.offsets) > 0
    if not rows.any():
        return []
    tiles = dense_rows(
        teacher,
        [record.input_ids],
        len(record.input_ids),
        vocab_size=selection.vocab_size,
        temperatures=selection.temperatures,
        wanted=[rows],
        best=1,
    )
    return [fidelity(references(tile), take(record.logits, tile.rows), unigram) for tile in tiles]
