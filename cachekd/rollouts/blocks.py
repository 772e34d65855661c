"""A document's rows as blocks with keys, so that documents that begin alike share what was scored.

In: token ids, the first row that is wanted, and given ids. Out: `Block`s; targets of blocks as
bytes, and targets of a document from the bytes of its blocks.

Blocks are `ROWS` rows from row 0 on, the last one shorter. A key holds all tokens that the block's
rows rest on, by a chain: key_j = blake2b-128(key_{j-1}, tokens of block j with the next token of
its last row). With given ids the block begins where they do, and its key is a digest of that row,
of them and of key_j. A value is rows and entries as uint32, then what the plain codec makes of the
rows in float32, so that what is decoded is what was scored.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cachekd.codecs import Codec, CodecHeader
from cachekd.data.digests import KEY_BYTES
from cachekd.errors import CorruptCache
from cachekd.plugins import find
from cachekd.teachers import Selection
from cachekd.types import Float32, Int32, TopKLogits

ROWS = 16
_SHAPE = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Block:
    """Rows ``start`` to ``stop`` of a document, and the key of their targets."""

    key: bytes
    start: int
    stop: int


def blocks_of(ids_L: Int32, first_row: int, given: Int32 | None) -> list[Block]:
    """Blocks of a document that hold its rows from ``first_row`` on.

    Args:
        ids_L: token ids, int32 [L].
        first_row: first row that is wanted.
        given: ids [L-1 - first_row, J] that are kept beside the head, in any order, or None.
    """
    blocks = []
    for start, stop, key in _chain(ids_L):
        if stop <= first_row:
            continue
        if given is not None:
            start = max(start, first_row)
            ids_RJ = np.sort(given[start - first_row : stop - first_row], axis=1)
            shape = _SHAPE.pack(stop - start, ids_RJ.shape[1])
            key = _digest(key + shape + ids_RJ.astype("<i4").tobytes())
        blocks.append(Block(key, start, stop))
    return blocks


def _chain(ids_L: Int32) -> Iterator[tuple[int, int, bytes]]:
    key, rows = b"", len(ids_L) - 1
    for start in range(0, rows, ROWS):
        stop = min(start + ROWS, rows)
        key = _digest(key + np.asarray(ids_L[start : stop + 1], "<i4").tobytes())
        yield start, stop, key


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()


def codec_of(selection: Selection) -> Codec:
    """What encodes and decodes the rows of a selection."""
    header = CodecHeader(
        codec="plain",
        vocab_size=selection.vocab_size,
        values="float32",
        temperatures=selection.temperatures,
    )
    codec: Codec = find("codecs", header.codec)(header)
    return codec


def encode(codec: Codec, targets: TopKLogits, block: Block) -> bytes:
    """Value of a block of a document with these targets."""
    part = rows_of(targets, block.start, block.stop)
    return _SHAPE.pack(part.rows, len(part.ids)) + codec.encode(part)


def assemble(
    codec: Codec, blocks: Sequence[Block], values: Mapping[bytes, bytes], first_row: int
) -> TopKLogits:
    """Targets of a document from the values of its blocks; rows before ``first_row`` are empty.

    Raises:
        CorruptCache: a value is not what its block needs.
    """
    records = []
    for block in blocks:
        value = values[block.key]
        if len(value) < _SHAPE.size:
            raise CorruptCache(f"a record of scores has {len(value)} bytes")
        rows, entries = _SHAPE.unpack_from(value)
        if rows != block.stop - block.start:
            raise CorruptCache(f"expected {block.stop - block.start} rows of scores, found {rows}")
        records.append((value[_SHAPE.size :], rows, entries))
    parts = codec.decode(records)
    skipped = first_row - blocks[0].start
    parts[0] = rows_of(parts[0], skipped, parts[0].rows)
    return _joined(parts, first_row)


def rows_of(targets: TopKLogits, start: int, stop: int) -> TopKLogits:
    """Some consecutive rows of targets without samples."""
    offsets = targets.offsets[start : stop + 1]
    entries = slice(int(offsets[0]), int(offsets[-1]))
    return TopKLogits(
        offsets=offsets - offsets[0],
        ids=targets.ids[entries],
        logprobs=targets.logprobs[entries],
        weights=None,
        tail=targets.tail[start:stop],
        next_logprob=targets.next_logprob[start:stop],
        lognorm={t: norm[start:stop] for t, norm in targets.lognorm.items()},
        entropy=targets.entropy[start:stop],
        vocab_size=targets.vocab_size,
    )


def _joined(parts: Sequence[TopKLogits], empty: int) -> TopKLogits:
    """Targets one behind the other, after so many empty rows."""
    before = np.zeros(empty, np.float32)

    def rows(name: str) -> Float32:
        return np.concatenate([before, *(getattr(part, name) for part in parts)])

    counts = [np.zeros(empty, np.int64), *(np.diff(part.offsets) for part in parts)]
    return TopKLogits(
        offsets=np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64),
        ids=np.concatenate([part.ids for part in parts]),
        logprobs=np.concatenate([part.logprobs for part in parts]),
        weights=None,
        tail=rows("tail"),
        next_logprob=rows("next_logprob"),
        lognorm={
            t: np.concatenate([before, *(part.lognorm[t] for part in parts)])
            for t in parts[0].lognorm
        },
        entropy=rows("entropy"),
        vocab_size=parts[0].vocab_size,
    )
