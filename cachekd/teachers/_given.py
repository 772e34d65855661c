"""Given ids of the documents of a batch as one array, beside its captured rows.

Comes in: for each document ids [R, J] of its R captured rows, or None. Goes out: int64 [N, J] for
the rows of all documents, -1 where a row has fewer; see `cachekd.teachers.Teacher.score`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cachekd.errors import ConfigError
from cachekd.teachers import Selection
from cachekd.types import Int32, Int64


def given_rows(
    given: Sequence[Int32 | None] | None,
    captured: Sequence[NDArray[np.bool_]],
    selection: Selection,
) -> Int64 | None:
    """Given ids of all captured rows; None where none are given.

    Raises:
        ConfigError: the selection samples, ids are not one row for each captured row, or are not
            in the vocabulary.
    """
    if given is None or all(ids_RJ is None for ids_RJ in given):
        return None
    if selection.tau or selection.samples:
        raise ConfigError(
            "given ids: expected a selection without sampled entries, whose tail would not be that "
            f"outside the given ids; found tau {selection.tau} and samples {selection.samples}"
        )
    parts = [
        _checked(ids_RJ, int(mask.sum()), selection.vocab_size)
        for ids_RJ, mask in zip(given, captured, strict=True)
    ]
    given_NJ = np.full((sum(map(len, parts)), max(part.shape[1] for part in parts)), -1, np.int64)
    row = 0
    for part in parts:
        given_NJ[row : row + len(part), : part.shape[1]] = part
        row += len(part)
    return given_NJ


def _checked(ids_RJ: Int32 | None, rows: int, vocab_size: int) -> Int32:
    if ids_RJ is None:
        return np.empty((rows, 0), dtype=np.int32)
    if ids_RJ.ndim != 2 or len(ids_RJ) != rows:
        raise ConfigError(
            f"given ids: expected ids for each of {rows} captured rows; found {ids_RJ.shape}"
        )
    if ids_RJ.size and not 0 <= int(ids_RJ.min()) <= int(ids_RJ.max()) < vocab_size:
        raise ConfigError(
            f"given ids: expected ids in [0, {vocab_size}); found {ids_RJ.min()}..{ids_RJ.max()}"
        )
    return ids_RJ
