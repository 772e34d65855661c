"""Exchange formats: targets of other tools, in and out. The file name is the format name.

A format module has ``PLUGIN``, a class with the protocol `Format`. It says what it cannot hold, and
turns files into `Document`s, or records of a cache into tables; what is checked, aligned and stored
is the same for all formats (see `cachekd.exchange._rows` and its neighbours). Helper modules start
with ``_``.

Shift: cachekd's row t is the distribution over ``input_ids[t + 1]``. A format says of each document
which token its first row predicts (`Document.first`); nothing else of a format knows of the shift.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from cachekd.types import Float32, Int64, Record, UInt8

if TYPE_CHECKING:
    import pyarrow as pa

    from cachekd.config import ExportConfig, ImportConfig
    from cachekd.store.reader import Cache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Document:
    """One document as a format holds it; nothing of it is checked.

    Attributes:
        source, row: where it stands: name of the file, number in it from 0.
        input_ids: token ids, int64 [L].
        counts: entries of each stored row, int64 [R].
        ids: token ids of the entries, int64 [n], in any order within a row.
        logprobs: their values, float32 [n], at temperature 1.
        first: the token that row 0 predicts: 1 where rows are aligned as cachekd's are.
        roles: a `cachekd.types.Role` for each token, uint8 [L]; None: all text.
        prompt_length: tokens before the completion, or None.
        domain, weight: as in `cachekd.types.Sample`.
        next_logprob: log-probability of the predicted token, float32 [R], NaN where it is not
            known; None where the format has none.
        scalars: further columns of rows, float32 [R], where the format stores them: ``tail``,
            ``entropy``, ``lognorm:<T>``.
    """

    source: str
    row: int
    input_ids: Int64
    counts: Int64
    ids: Int64
    logprobs: Float32
    first: int = 1
    roles: UInt8 | None = None
    prompt_length: int | None = None
    domain: str = ""
    weight: float = 1.0
    next_logprob: Float32 | None = None
    scalars: Mapping[str, Float32] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A document that the format cannot read, and why."""

    source: str
    row: int
    reason: str


Found = Document | Broken


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A source that was opened: its documents, and what is known of all of them.

    Attributes:
        documents: in the order of the source, each read when it is asked for.
        values: what the format says the values are (see `ImportConfig.values`); auto: it does not.
        next_known: whether the log-probability of every predicted token is stored; None: where the
            first documents tell all of theirs.
        scalars: names of the scalars that every document has.
        total: documents, where that is known beforehand.
        notes: what the source says of itself, for the provenance; JSON types.
    """

    documents: Iterator[Found]
    values: str
    next_known: bool | None = False
    scalars: tuple[str, ...] = ()
    total: int | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """How records are written.

    Attributes:
        schema: of the Parquet files.
        table: rows of some records.
        files: further files of the folder, by name.
        width: entries of a row, at most or in the mean: wide rows are written fewer at a time.
        lost: what of this cache the format cannot hold.
        notes: how it is to be used, for the folder's README.
    """

    schema: pa.Schema
    table: Callable[[Sequence[Record]], pa.RecordBatch]
    files: Mapping[str, str]
    width: int
    lost: Sequence[str]
    notes: str


class Format(Protocol):
    """A format of another tool."""

    lacks: ClassVar[tuple[str, ...]]
    """What the format cannot hold, in words; of an import it is derived, bounded or unknown."""

    @staticmethod
    def read(config: ImportConfig, vocab_size: int) -> Reading:
        """Open a source.

        Raises:
            DataError: it is of another format; says what was expected, found, and is meant.
            ConfigError: the format cannot be imported, or lacks a setting.
        """
        ...

    @staticmethod
    def write(config: ExportConfig, cache: Cache) -> Writing:
        """How the records of a cache are written.

        Raises:
            ConfigError: the format cannot be exported, or cannot hold what the cache holds.
        """
        ...


def rows_of(counts: Int64) -> Int64:
    """The row of each entry, int64 [n]."""
    return np.repeat(np.arange(len(counts)), counts)


Mask = NDArray[np.bool_]
