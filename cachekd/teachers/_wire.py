"""What a served teacher is asked and answers, as bytes: the same code in client and server.

Both are messages of `cachekd.teachers._message`, with integers in little-endian:

    request   head   source_id, selection, documents: [[L, J, ranges], ...] where ranges are the
                     wanted rows as [first, end, first, end, ...]
              body   for each document its token ids, int32 [L], and where J > 0 the given ids of
                     its R wanted rows, int32 [R, J]
    answer    head   source_id, codec: a `CodecHeader`, documents: [[rows, entries, bytes], ...]
              body   for each document a record of the plain codec in float32

Sizes follow from the head, and are compared with what is there before anything is allocated.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.codecs import CodecHeader
from cachekd.errors import CorruptCache, DataError
from cachekd.plugins import find
from cachekd.teachers import Selection
from cachekd.teachers._message import FRAME, pack, unpack
from cachekd.types import Int32, TopKLogits

CONTENT_TYPE = "application/octet-stream"
_HEAD = 1 << 10
_MOST_TEMPERATURES = 16
_SELECTION = ("k", "p", "min_k", "min_prob", "vocab_size", "temperatures")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreRequest:
    """Documents to score, and by whom: see `cachekd.teachers.Teacher.score`."""

    source_id: str
    selection: Selection
    documents: Sequence[Int32]
    wanted: Sequence[NDArray[np.bool_]]
    given: Sequence[Int32 | None]


_MOST_GIVEN = 1024
"""Given ids of a row: documents that are scored together share an array of the widest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """Length, number of given ids, and ranges of wanted rows of a document."""

    length: int
    width: int
    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def read(cls, document: Sequence[Any]) -> _Shape:
        """From the head of a request.

        Raises:
            DataError: no document has it.
        """
        length, width = _whole(document[0]), _whole(document[1])
        edges = [_whole(edge) for edge in _listed(document[2])]
        ascending = all(a < b for a, b in itertools.pairwise([-1, *edges, length]))
        if length < 2 or not 0 <= width <= _MOST_GIVEN or len(edges) % 2 or not ascending:
            raise DataError(
                f"expected [tokens >= 2, given ids (at most {_MOST_GIVEN}), ascending ranges "
                f"of rows] of a document; found {str(document)[:200]}"
            )
        pairs = tuple(zip(edges[::2], edges[1::2], strict=True))
        return cls(length=length, width=width, ranges=pairs)

    @property
    def rows(self) -> int:
        """Wanted rows."""
        return sum(end - first for first, end in self.ranges)

    def wanted(self) -> NDArray[np.bool_]:
        """Whether each row is wanted, bool [L-1]."""
        mask = np.zeros(self.length - 1, dtype=bool)
        for first, end in self.ranges:
            mask[first:end] = True
        return mask


def pack_request(request: ScoreRequest) -> bytes:
    """The request as bytes."""
    documents: list[tuple[int, int, list[int]]] = []
    arrays: list[Int32] = []
    parts = zip(request.documents, request.wanted, request.given, strict=True)
    for ids_L, wanted, given_RJ in parts:
        width = 0 if given_RJ is None else given_RJ.shape[1]
        edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False))
        documents.append((len(ids_L), width, edges.tolist()))
        arrays += [ids_L] if given_RJ is None else [ids_L, given_RJ]
    chosen = asdict(request.selection)
    head = {
        "source_id": request.source_id,
        "selection": {name: chosen[name] for name in _SELECTION},
        "documents": documents,
    }
    return pack(head, [np.ascontiguousarray(a, dtype="<i4").tobytes() for a in arrays])


def unpack_request(data: bytes) -> ScoreRequest:
    """The request in bytes from anybody.

    Raises:
        DataError: it is none; says what is wrong.
    """
    head, body = unpack(data)
    try:
        selection = _selection(head["selection"])
        shapes = [_Shape.read(document) for document in _listed(head["documents"])]
        source_id = str(head["source_id"])
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise DataError(f"the head of the request cannot be read: {error!r}") from error
    needed = 4 * sum(shape.length + shape.rows * shape.width for shape in shapes)
    if needed != len(body) or not shapes:
        raise DataError(f"expected {needed} bytes of ids as the head says; found {len(body)}")
    ids = np.frombuffer(body, dtype="<i4").astype(np.int32)
    documents, given, place = [], [], 0
    for shape in shapes:
        documents.append(ids[place : place + shape.length])
        place += shape.length
        part = ids[place : place + shape.rows * shape.width]
        given.append(part.reshape(shape.rows, shape.width) if shape.width else None)
        place += shape.rows * shape.width
    return ScoreRequest(
        source_id=source_id,
        selection=selection,
        documents=documents,
        wanted=[shape.wanted() for shape in shapes],
        given=given,
    )


def pack_answer(request: ScoreRequest, targets: Sequence[TopKLogits]) -> bytes:
    """The targets of a request's documents as bytes."""
    header = _header(request.selection)
    codec = find("codecs", header.codec)(header)
    records = [codec.encode(target) for target in targets]
    head = {
        "source_id": request.source_id,
        "codec": json.loads(header.to_json()),
        "documents": [
            (target.rows, len(target.ids), len(record))
            for target, record in zip(targets, records, strict=True)
        ],
    }
    return pack(head, records)


def unpack_answer(data: bytes, request: ScoreRequest) -> list[TopKLogits]:
    """The targets in the answer to a request.

    Raises:
        DataError: it is no answer, or not to this request.
    """
    head, body = unpack(data)
    header = _header(request.selection)
    try:
        found = CodecHeader.from_json(json.dumps(head["codec"]))
        shapes = [(int(rows), int(n), int(size)) for rows, n, size in head["documents"]]
        source_id = head["source_id"]
    except (KeyError, TypeError, ValueError, CorruptCache) as error:
        raise DataError(f"the head of the answer cannot be read: {error!r}") from error
    if source_id != request.source_id or found != header:
        raise DataError(f"an answer to another request: of {source_id}, {found}")
    if [rows for rows, _, _ in shapes] != [len(ids_L) - 1 for ids_L in request.documents]:
        raise DataError("an answer to another request: its documents have other lengths")
    if sum(size for _, _, size in shapes) != len(body) or min(s for _, _, s in shapes) < 0:
        raise DataError(f"an answer of {len(body)} bytes that its head does not describe")
    records, place = [], 0
    for (rows, entries, size), most in zip(shapes, _entries(request), strict=True):
        if not 0 <= entries <= most:
            raise DataError(f"expected at most {most} entries in a document; found {entries}")
        records.append((bytes(body[place : place + size]), rows, entries))
        place += size
    try:
        targets: list[TopKLogits] = find("codecs", header.codec)(header).decode(records)
    except CorruptCache as error:
        raise DataError(f"the answer cannot be read: {error}") from error
    for target, wanted in zip(targets, request.wanted, strict=True):
        _check_values(target, wanted)
    return targets


def sizes(request: ScoreRequest) -> list[tuple[int, int]]:
    """Most bytes that each document adds to the request and to its answer."""
    scalars = 4 * (4 + len(request.selection.temperatures))
    found = []
    parts = zip(request.documents, request.wanted, request.given, _entries(request), strict=True)
    for ids_L, wanted, given_RJ, entries in parts:
        head = 32 + 12 * (2 + int(np.count_nonzero(np.diff(wanted))))
        asked = 4 * len(ids_L) + (0 if given_RJ is None else 4 * given_RJ.size) + head
        plain = scalars * (len(ids_L) - 1) + 7 * entries
        found.append((asked, plain + plain // 128 + 256))  # what zstd and the head may add
    return found


def frame_size(selection: Selection) -> int:
    """Most bytes of a message without its documents."""
    return FRAME + _HEAD + 32 * len(selection.temperatures)


def _entries(request: ScoreRequest) -> list[int]:
    """Most entries that each document can have."""
    selection = request.selection
    return [
        int(wanted.sum())
        * min(selection.k + (0 if given_RJ is None else given_RJ.shape[1]), selection.vocab_size)
        for wanted, given_RJ in zip(request.wanted, request.given, strict=True)
    ]


def _header(selection: Selection) -> CodecHeader:
    return CodecHeader(
        codec="plain",
        vocab_size=selection.vocab_size,
        values="float32",
        temperatures=tuple(sorted(selection.temperatures)),
    )


def _selection(value: Mapping[str, Any]) -> Selection:
    """A selection without sampling whose numbers make sense.

    Raises:
        DataError: they do not.
    """
    k, min_k, vocab = (_whole(value[name]) for name in ("k", "min_k", "vocab_size"))
    p, min_prob = _number(value["p"]), _number(value["min_prob"])
    temperatures = tuple(map(_number, _listed(value["temperatures"])))
    good = 1 <= min_k <= k <= vocab and 0 < p <= 1 and 0 <= min_prob < 1
    good &= len(set(temperatures)) == len(temperatures) <= _MOST_TEMPERATURES
    good &= all(math.isfinite(t) and t > 0 and t != 1 for t in temperatures)
    if not good or set(value) != set(_SELECTION):
        raise DataError(
            f"expected a selection with {', '.join(_SELECTION)}, where 1 <= min_k <= k <= "
            f"vocab_size, 0 < p <= 1, 0 <= min_prob < 1, and at most {_MOST_TEMPERATURES} "
            f"different temperatures above 0, other than 1; found {value}"
        )
    return Selection(
        k=k, p=p, min_k=min_k, min_prob=min_prob, vocab_size=vocab, temperatures=temperatures
    )


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected a whole number; found {value!r}")
    return value


def _number(value: Any) -> float:
    return float(value) if isinstance(value, float) else float(_whole(value))


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list; found {str(value)[:80]}")
    return value


def _check_values(target: TopKLogits, wanted: NDArray[np.bool_]) -> None:
    """Entries on wanted rows alone, and numbers."""
    if (np.diff(target.offsets)[~wanted] != 0).any():
        raise DataError("an answer to another request: it has entries on rows not asked for")
    scalars = [target.tail, target.next_logprob, target.entropy, *target.lognorm.values()]
    if any(np.isnan(values).any() for values in [target.logprobs, *scalars]):
        raise DataError("the answer holds NaN")
