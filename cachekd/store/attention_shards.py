"""Shards of attention: documents to safetensors bytes and back, row i beside row i of the logits.

Tensors of a shard with N documents, sorted by key, of A layers:

    keys       U8  [N, 16]           sample keys
    n_tokens   I32 [N]               tokens of each document
    offsets    I64 [N * (A + 1) + 1] where each block begins in ``blocks``
    checksums  U8  [N * (A + 1), 8]  blake2b-64 of each block, verified whenever it is read
    blocks     U8  [bytes]           for each document its query rows, then one block a layer

A block of rows is a bit for each of the L-1 positions, lowest first, 1 where the row was captured;
it is empty where all were. Blocks of layers are those of `cachekd.codecs._attention`, or empty in a
document of which no row was captured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cachekd.codecs._attention import LayerRows, no_rows
from cachekd.codecs._attention_maps import decode_maps
from cachekd.codecs._attention_qk import decode_qk
from cachekd.data import limits, strict
from cachekd.data.attention import AttentionSpec
from cachekd.data.digests import KEY_BYTES, bytes_digest, sample_key
from cachekd.errors import CorruptCache
from cachekd.store.io import Location
from cachekd.store.layout import attention_name
from cachekd.store.names import altered
from cachekd.store.tensors import dump_tensors, load_tensors
from cachekd.types import AttentionRows, Float32, Int32

_SUM_BYTES = 8
_TYPES = {"keys": "<u1", "n_tokens": "<i4", "offsets": "<i8", "checksums": "<u1", "blocks": "<u1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionFacts:
    """What a commit record and a seal say of a shard of attention; names it by its sha256.

    ``rows`` counts documents, ``queries`` their captured query rows.
    """

    digest: str
    bytes: int
    rows: int
    tokens: int
    queries: int

    @classmethod
    def from_json(cls, value: Any) -> AttentionFacts:
        """From a JSON document; further fields are not looked at.

        Raises:
            CorruptCache: fields are missing, of another type, or impossible.
        """
        try:
            rows = strict.whole(value["rows"], limits.TABLE_ROWS, 1)
            tokens = strict.whole(value["tokens"], rows * limits.TOKENS, 2 * rows)
            return cls(
                digest=strict.digest(value["digest"]),
                bytes=strict.whole(value["bytes"], limits.SHARD_BYTES),
                rows=rows,
                tokens=tokens,
                queries=strict.whole(value["queries"], tokens),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptCache(
                f"facts of an attention shard cannot be read: {error!r:.300}"
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedAttention:
    """Attention of one document as it is stored.

    Attributes:
        rows: captured query rows, bool [L-1].
        layers: bytes of each layer.
    """

    rows: NDArray[np.bool_]
    layers: tuple[bytes, ...]

    def blocks(self) -> list[bytes]:
        """What a shard holds of it."""
        mask = b"" if self.rows.all() else np.packbits(self.rows, bitorder="little").tobytes()
        return [mask, *self.layers]


def write_attention(
    spec: AttentionSpec,
    capture_id: str,
    keys: Sequence[bytes],
    documents: Sequence[Int32],
    attention: Sequence[EncodedAttention],
) -> tuple[pa.Buffer, AttentionFacts]:
    """The bytes of a shard and what is said of it."""
    order = sorted(range(len(keys)), key=lambda i: keys[i])
    blocks = [block for i in order for block in attention[i].blocks()]
    sums = b"".join(_checksum(block) for block in blocks)
    offsets = np.cumsum([0, *map(len, blocks)], dtype="<i8")
    data = dump_tensors(
        {
            "keys": np.frombuffer(b"".join(keys[i] for i in order), np.uint8).reshape(
                -1, KEY_BYTES
            ),
            "n_tokens": np.array([len(documents[i]) for i in order], dtype="<i4"),
            "offsets": offsets,
            "checksums": np.frombuffer(sums, np.uint8).reshape(-1, _SUM_BYTES),
            "blocks": np.frombuffer(b"".join(blocks), np.uint8),
        },
        {
            "cachekd": "attention",
            "capture_id": capture_id,
            "attention": json.dumps(spec.to_json(), sort_keys=True),
        },
    )
    return data, AttentionFacts(
        digest=bytes_digest(data),
        bytes=data.size,
        rows=len(keys),
        tokens=sum(map(len, documents)),
        queries=sum(int(item.rows.sum()) for item in attention),
    )


def _checksum(block: Any) -> bytes:
    return hashlib.blake2b(block, digest_size=_SUM_BYTES).digest()


class AttentionShard:
    """An open shard of attention; its bytes are checked in whole when it is opened.

    Raises:
        CorruptCache: missing, altered, of another capture, or not decodable; names the file.
    """

    def __init__(self, location: Location, facts: AttentionFacts, capture_id: str) -> None:
        self.name = attention_name(facts.digest)
        self._path = location.path(self.name)
        data = location.checked(self.name, facts.digest, facts.bytes)
        try:
            tensors, metadata = load_tensors(data)
            if metadata.get("capture_id") != capture_id:
                raise CorruptCache(f"it holds another capture than {capture_id}")
            self.spec = AttentionSpec.from_json(
                strict.parse_json(metadata["attention"].encode(), most_values=limits.HEADER_VALUES)
            )
            self._take(tensors, facts.rows)
        except (CorruptCache, KeyError, ValueError) as error:
            raise self._corrupt(str(error)) from error

    def _take(self, tensors: dict[str, NDArray[Any]], rows: int) -> None:
        """Check shapes of the tables against one another, and keep them."""
        count = rows * (len(self.spec.layers) + 1)
        shapes = {
            "keys": (rows, KEY_BYTES),
            "n_tokens": (rows,),
            "offsets": (count + 1,),
            "checksums": (count, _SUM_BYTES),
            "blocks": (len(tensors["blocks"]),),
        }
        if tensors.keys() != shapes.keys():
            raise CorruptCache(f"expected the tensors {', '.join(shapes)}; found {len(tensors)}")
        for name, shape in shapes.items():
            found = tensors[name]
            if found.shape != shape or found.dtype != _TYPES[name]:
                raise CorruptCache(
                    f"{name}: expected {_TYPES[name]} of shape {shape}, found {found.dtype} of "
                    f"{found.shape}"
                )
        self._keys, self._tokens = tensors["keys"], tensors["n_tokens"]
        self._offsets, self._sums = tensors["offsets"], tensors["checksums"]
        self._blocks = tensors["blocks"]
        ends = (self._offsets[0], self._offsets[-1])
        if ends != (0, len(self._blocks)) or (np.diff(self._offsets) < 0).any():
            raise CorruptCache("its offsets do not cover its blocks")

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self) -> list[bytes]:
        """All keys, in row order."""
        return [bytes(key) for key in self._keys]

    def record(self, row: int, input_ids: Int32) -> AttentionRows:
        """Attention of the document in this row, which must have these token ids.

        Raises:
            CorruptCache: it belongs to other tokens, or is damaged.
        """
        length = len(input_ids) - 1
        try:
            if not 0 <= row < len(self):
                raise CorruptCache(f"it has {len(self)} rows")
            if bytes(self._keys[row]) != sample_key(input_ids):
                raise CorruptCache("it belongs to other token ids")
            if int(self._tokens[row]) != length + 1 or length >= limits.TOKENS:
                raise CorruptCache(f"{self._tokens[row]} tokens; the document has {length + 1}")
            rows = self.query_rows(row, length)
            layers = [
                self._decode(self._block(row, place), rows, length)
                for place in range(1, len(self.spec.layers) + 1)
            ]
        except CorruptCache as error:
            raise self._corrupt(f"row {row}: {error}") from error
        return _joined(self.spec, rows, length, layers)

    def check_record(self, row: int, input_ids: Int32) -> int:
        """Decode a row and check its law; the number of its query rows.

        Raises:
            CorruptCache: says what is wrong.
        """
        found = self.record(row, input_ids)
        counts = np.diff(found.offsets)
        row_n = np.repeat(np.arange(len(counts)), counts)
        mass = np.bincount(row_n, found.probs, len(counts)) + found.rest.reshape(-1)
        if not (found.probs >= 0).all() or not (np.abs(mass - 1) < 1e-3).all():
            raise self._corrupt(f"row {row}: an attention row does not add up to mass 1")
        return len(found.rows)

    def _decode(self, data: bytes, rows: Int32, length: int) -> LayerRows:
        if not len(rows):
            if data:
                raise CorruptCache("a layer without query rows has content")
            return no_rows(len(self.spec.heads))
        decode = decode_qk if self.spec.kind == "qk" else decode_maps
        return decode(self.spec, data, rows, length)

    def encoded(self, row: int) -> EncodedAttention:
        """Attention of a document as it is stored (errors of `query_rows`)."""
        length = int(self._tokens[row]) - 1
        mask = np.isin(np.arange(length), self.query_rows(row, length))
        places = range(1, len(self.spec.layers) + 1)
        return EncodedAttention(rows=mask, layers=tuple(self._block(row, at) for at in places))

    def query_rows(self, row: int, length: int) -> Int32:
        """Captured rows of the document in this row, which has ``length`` of them, int32 [R].

        Raises:
            CorruptCache: they cannot be those of such a document.
        """
        packed = self._block(row, 0)
        if not packed:
            return np.arange(length, dtype=np.int32)
        if len(packed) != (length + 7) // 8:
            raise CorruptCache(f"{len(packed)} bytes of query rows for {length} positions")
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
        if bits[length:].any():
            raise CorruptCache("a query row lies after the document")
        return bits[:length].nonzero()[0].astype(np.int32)

    def _block(self, row: int, place: int) -> bytes:
        number = row * (len(self.spec.layers) + 1) + place
        block = bytes(self._blocks[self._offsets[number] : self._offsets[number + 1]])
        if _checksum(block) != bytes(self._sums[number]):
            raise CorruptCache(f"the checksum of block {place} does not fit")
        return block

    def _corrupt(self, what: str) -> CorruptCache:
        return altered(self._path, what)


def _joined(
    spec: AttentionSpec, rows: Int32, length: int, layers: Sequence[LayerRows]
) -> AttentionRows:
    counts = np.concatenate([layer.counts for layer in layers])
    probs: Float32 = np.concatenate([layer.probs for layer in layers])
    return AttentionRows(
        layers=np.array(spec.layers, dtype=np.int32),
        heads=np.array(spec.heads, dtype=np.int32),
        rows=rows,
        weights=np.full(len(rows), 1 / spec.share, dtype=np.float32),
        offsets=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        keys=np.concatenate([layer.keys for layer in layers]),
        probs=probs,
        rest=np.stack([layer.rest for layer in layers]),
        length=length,
    )
