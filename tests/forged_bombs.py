"""Small files that unpack to much, for `confined`: to be refused before that is allocated."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from forged_sizes import SAMPLE, SPEC, tensors, zstd
from ragged import header

from cachekd.codecs import CodecHeader
from cachekd.codecs._attention_maps import decode_maps
from cachekd.codecs._priors import load_prior
from cachekd.codecs._streams import pack
from cachekd.codecs.packed import PackedCodec
from cachekd.codecs.plain import PlainCodec
from cachekd.store.layout import load_document
from cachekd.store.samples import read_samples
from cachekd.store.tables import LOGITS, SAMPLES, open_table
from cachekd.store.tensors import load_tensors

Case = tuple[str, Callable[[], object]]
GIB = 1 << 30
PLAIN = CodecHeader(codec="plain", vocab_size=300, values="float16", temperatures=())
SIZE = 4 * 4 * 3 + (3 + 2) * 8  # of three rows with eight entries


def cases(cache: Path, every: bool) -> Iterator[Case]:
    """All of them; what they read is made before."""
    yield from of_frames()
    yield from of_streams()
    yield from of_tables()
    yield from of_tensors()


def bomb(size: int) -> bytes:
    """A frame that claims, and has, this many zeros: blocks of one byte repeated."""
    block, left, parts = 1 << 17, size, [b"\x28\xb5\x2f\xfd\xa4", struct.pack("<I", size)]
    while left:
        width = min(block, left)
        left -= width
        parts.append(struct.pack("<I", (width << 3) | 2 | (left == 0))[:3] + b"\0")
    return b"".join(parts) + bytes(4)


def frame(size: int, window: int, checksum: bool = True) -> bytes:
    """A frame of one raw block with a window of 2^(10 + window), and eight bytes of size."""
    head = b"\x28\xb5\x2f\xfd" + bytes([0xC0 | 4 * checksum, window << 3]) + struct.pack("<Q", size)
    return head + struct.pack("<I", (SIZE << 3) | 1)[:3] + bytes(SIZE) + bytes(4 * checksum)


def of_frames() -> Iterator[Case]:
    """Frames in the place of the targets of three rows with eight entries."""
    whole = zstd(bytes(SIZE))
    skipped = struct.pack("<II", 0x184D2A50, 8) + bytes(8)
    blind = zstandard.ZstdCompressor(write_content_size=False, write_checksum=True)
    frames = {
        "32 kB for 1 GiB": bomb(GIB),
        "without a size": blind.compress(bytes(SIZE)),
        "of 2^60 bytes": frame(1 << 60, 0),
        "of a window of 1 GiB": frame(SIZE, 20),
        "without a checksum": zstandard.ZstdCompressor().compress(bytes(SIZE)),
        "and another": whole + whole,
        "and a bomb": whole + bomb(GIB),
        "after one to skip": skipped + whole,
        "before one to skip": whole + skipped,
        "that is to skip": skipped,
        "in gzip": gzip.compress(gzip.compress(bytes(1 << 20))),
        "that is empty": b"",
    }
    for name, data in frames.items():
        yield f"a frame {name}", lambda d=data: PlainCodec(PLAIN).decode([(d, 3, 8)])
        yield f"a layer {name}", lambda d=data: decode_maps(SPEC, d, np.arange(3, dtype="i4"), 3)
        yield f"streams {name}", lambda d=data: PackedCodec(header(300)).decode([(d, 3, 8)])
        head = struct.pack("<8sIIII", b"CKDPRIOR", 1, SIZE // 2, 0, 0)
        yield f"a prior {name}", lambda d=data, h=head: load_prior("x", h + d)
    # Shapes to match: too much for so few bytes.
    many = GIB // 5 // 300 * 300
    yield "entries to match", lambda: PlainCodec(PLAIN).decode([(whole, many // 300, many)])
    yield "rows to match", lambda: PlainCodec(PLAIN).decode([(bomb(1 << 20), 1 << 27, 8)])


def of_streams() -> Iterator[Case]:
    """Streams of zeros take no bytes at all."""
    codec = PackedCodec(header(1 << 20))
    for runs, length in ((1, (1 << 27) - 1), (3, 299), (0, 0)):
        of_row = np.where(np.arange(256) == 0, runs, 0)
        streams = [of_row, np.zeros(runs, "i8"), np.full(runs, length), *[np.zeros(0, "i8")] * 2]
        data = pack([*streams, *[np.zeros(256, "i8")] * 4])
        name = f"{runs} runs of {length} for 2^27 entries"
        yield name, lambda d=data: codec.decode([(d, 256, 1 << 27)])


def table(schema: pa.Schema, columns: dict[str, Any], **options: Any) -> pa.Buffer:
    """A Parquet file as some other writer makes it."""
    sink = pa.BufferOutputStream()
    arrays = [pa.array(columns[name], schema.field(name).type) for name in schema.names]
    own = {"use_dictionary": False, "compression": "ZSTD", "write_page_checksum": True}
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink, **{**own, **options})
    return sink.getvalue()


def of_tables() -> Iterator[Case]:
    """Parquet files of few bytes."""
    rows = {name: [value] * 1000 for name, value in SAMPLE.items()}
    long = {**rows, "domain": ["x" * 20_000] * 1000}
    files = {
        "a dictionary": table(SAMPLES, long, use_dictionary=["domain"]),
        "a dictionary of keys": table(SAMPLES, rows, use_dictionary=["key"]),
        "long text": table(SAMPLES, long),
        "gzip": table(SAMPLES, rows, compression="GZIP"),
        "snappy": table(SAMPLES, rows, compression="SNAPPY"),
        "no checksums": table(SAMPLES, rows, write_page_checksum=False),
        "deltas": table(SAMPLES, rows, column_encoding={"order": "DELTA_BINARY_PACKED"}),
        "pages of version 2": table(SAMPLES, rows, data_page_version="2.0"),
        "many spans": table(
            SAMPLES, {**rows, "span_ends": [[0] * 2000] * 1000, "span_roles": [[0] * 2000] * 1000}
        ),
        "a further column": table(
            SAMPLES.append(pa.field("x", pa.int8())), {**rows, "x": [1] * 1000}
        ),
        "a nested column": table(
            SAMPLES.set(6, pa.field("domain", pa.list_(pa.list_(pa.string())))),
            {**rows, "domain": [[["x"]]] * 1000},
        ),
        "many row groups": table(
            SAMPLES, {n: v * 20 for n, v in rows.items()}, row_group_size=1
        ),
    }  # fmt: skip
    for name, data in files.items():
        yield f"a table with {name}", lambda d=data: read_samples("x", d, 1000)
    ids = {
        "key": [b"k" * 16], "n_tokens": [2], "n_entries": [0], "input_ids": [[7] * (1 << 22)],
        "targets": [b""],
    }  # fmt: skip
    lying = table(LOGITS, ids, compression={name: "ZSTD" for name in LOGITS.names})
    yield "a list of 2^22 for 2", lambda: open_table("x", lying, LOGITS, rows=1, values=2)
    zeros = table(LOGITS, {**ids, "input_ids": [[7, 7]], "targets": [bytes(1 << 26)]})
    yield "targets of zeros", lambda: open_table("x", zeros, LOGITS, rows=1, values=2)
    footer = b"PAR1" + bytes(100) + struct.pack("<I", 1 << 31) + b"PAR1"
    yield "a footer of 2^31", lambda: read_samples("x", pa.py_buffer(footer), 1000)


def of_tensors() -> Iterator[Case]:
    """A million tensors of nothing, and packed documents."""
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    many = json.dumps({f"t{i}": entry for i in range(1_000_000)}).encode()
    file = tensors(many, b"")
    yield "10^6 empty tensors", lambda: load_tensors(file)
    packed = gzip.compress(gzip.compress(b"[" + b"0," * (1 << 20) + b"0]"))
    yield "a document in gzip", lambda: load_document("cache", "cache.json", packed)
