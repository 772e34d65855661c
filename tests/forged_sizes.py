"""Numbers that no writer writes, at every place of a cache that holds one, for `confined`."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from forged import checked, forge, put
from ragged import header, made_up

from cachekd.codecs import CodecHeader
from cachekd.codecs._attention_maps import decode_maps
from cachekd.codecs._attention_qk import decode_qk
from cachekd.codecs._priors import load_prior
from cachekd.codecs.packed import PackedCodec
from cachekd.codecs.plain import PlainCodec
from cachekd.data.attention import AttentionSpec
from cachekd.store.index import build_index, load_index
from cachekd.store.io import Location
from cachekd.store.layout import dump_document, load_document, read_document
from cachekd.store.samples import read_samples
from cachekd.store.tables import SAMPLES, write_table
from cachekd.store.tensors import load_tensors

Case = tuple[str, Callable[[], object]]
HUGE = {"2^31": 2**31, "2^53": 2**53, "2^60": 2**60, "2^63": 2**63, "10^400": 10**400}
ODD: dict[str, Any] = {
    "-1": -1, "1e400": math.inf, "NaN": math.nan, "text 5": "5", "true": True, "null": None,
    "1.5": 1.5, "list": [5], "object": {"5": 5},
}  # fmt: skip
VALUES = HUGE | ODD
SPEC = AttentionSpec(
    kind="maps", layers=(0,), heads=(0, 1), teacher_heads=2, key_heads=1, head_width=4, rows="all",
    share=1.0, seed=0, keys=0, values="sqrt", step=1 / 255,
)  # fmt: skip


def at(*path: Any) -> Callable[[dict[str, Any], Any], None]:
    """Sets a value at a place of a document."""

    def change(document: Any, value: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


FIELDS = {
    ("unit", "bytes"): at("shards", "logits", "bytes"),
    ("unit", "rows"): at("shards", "logits", "rows"),
    ("unit", "tokens"): at("shards", "logits", "tokens"),
    ("unit", "entries"): at("shards", "logits", "entries"),
    ("unit", "number"): at("unit"),
    ("plan", "sequence"): at("sequence"),
    ("plan", "threads"): at("threads"),
    ("plan", "rows of a batch"): at("units", 0, 0, 0),
    ("plan", "padded length"): at("units", 0, 0, 1),
    ("manifest", "generation"): at("generation"),
    ("manifest", "samples counted"): at("totals", "samples"),
    ("manifest", "rows"): at("kinds", "logits", "shards", 0, "rows"),
    ("manifest", "tokens"): at("kinds", "logits", "shards", 0, "tokens"),
    ("manifest", "entries"): at("kinds", "logits", "shards", 0, "entries"),
}


def cases(cache: Path, every: bool) -> Iterator[Case]:
    """All of them, or a share of those of documents; what they read is written before."""
    yield from of_documents(cache, every)
    yield from of_large_documents(cache)
    if every:
        yield from of_long_lists(cache)
    yield from of_headers()
    yield from of_frames()
    yield from of_files()


def of_documents(cache: Path, every: bool) -> Iterator[Case]:
    """Each value at some fields and each field with some values, or all of them."""
    for i, ((kind, field), change) in enumerate(FIELDS.items()):
        for label, value in list(VALUES.items())[0 if every else i % 4 :: 1 if every else 4]:
            yield f"{kind} {field} {label}", forged(cache, kind, change, value)
    change = at("priors", next((cache / "priors").iterdir()).name)
    for label, value in VALUES.items():
        yield f"manifest priors {label}", forged(cache, "manifest", change, value)


def forged(
    cache: Path, kind: str, change: Callable[[dict[str, Any], Any], None], value: Any
) -> Callable[[], object]:
    """A cache with this value; infinity stands as 1e400, which no JSON reader sees as infinite."""
    copy = cache.with_name(f"{cache.name}-{len(list(cache.parent.iterdir()))}")
    shutil.copytree(cache, copy)

    def write(document: dict[str, Any]) -> bytes:
        change(document, value)
        return dump_document(kind, document).replace(b"Infinity", b"1e400")

    forge(copy, **{kind: write})
    return lambda: checked(str(copy), partial=kind != "manifest")


def of_large_documents(cache: Path) -> Iterator[Case]:
    """A hundred megabytes, a million of anything, a hundred thousand levels."""
    location = Location(str(cache))
    texts = {
        "100 MB of numbers": b"[" + b"0," * 50_000_000 + b"0]",
        "100 MB of lists": b"[" + b"[]," * 33_000_000 + b"0]",
        "depth 10^5": b"[" * 100_000 + b"]" * 100_000,
        "depth 10^5 of objects": b'{"a":' * 100_000 + b"0" + b"}" * 100_000,
        "10^6 shards": b'{"shards":[' + b"{}," * 1_000_000 + b"0]}",
        "a number of 10^7 digits": b"[" + b"9" * 10_000_000 + b"]",
    }
    for label, text in texts.items():
        file = f"{len(text)}.json"
        put(cache / file, text)
        for kind in ("capture", "manifest"):
            yield f"{kind} of {label}", lambda k=kind, n=file: read_document(location, k, n)
    deep = b'{"a":' * 100 + b"0" + b"}" * 100
    for kind in ("unit", "plan", "manifest", "cache", "capture", "hint", "scores"):
        yield f"{kind} of depth 100", lambda k=kind: load_document(k, "x", deep)


def of_long_lists(cache: Path) -> Iterator[Case]:
    """Lists in documents whose checksums fit."""
    many = {
        "10^6 shards of a seal": (
            "manifest",
            lambda d: d["kinds"]["logits"]["shards"].extend([0] * 1_000_000),
        ),
        "many samples files": ("plan", lambda d: d["samples"].extend(["a"] * 300_000)),
        "many runs": ("manifest", lambda d: d["runs"].extend([0] * 70_000)),
    }
    for label, (kind, change) in many.items():
        yield label, forged(cache, kind, lambda d, _, c=change: c(d), None)


def of_headers() -> Iterator[Case]:
    """Headers of codecs and of attention."""
    good = json.loads(header(300).to_json())
    for name in ("vocab_size", "step", "samples", "tau", "temperatures", "codec", "values"):
        for label, value in VALUES.items():
            if (name, label) in {("step", "null"), ("temperatures", "list")}:
                continue  # such values there may be
            text = json.dumps({**good, name: value}).replace("Infinity", "1e400")
            yield f"header {name} {label}", lambda t=text: CodecHeader.from_json(t)
    many = json.dumps({**good, "temperatures": list(range(2, 100_000))})
    yield "header of 10^5 temperatures", lambda: CodecHeader.from_json(many)
    spec = SPEC.to_json()
    for name in ("teacher_heads", "head_width", "keys", "step", "share", "layers", "heads"):
        for label, value in VALUES.items():
            if (name, label) == ("layers", "list"):
                continue
            changed = {**spec, name: value}
            yield f"attention {name} {label}", lambda c=changed: AttentionSpec.from_json(c)


def of_frames() -> Iterator[Case]:
    """Shapes that a record claims for bytes that are whole."""
    head = header(300)
    data = PackedCodec(head).encode(made_up(head, [3, 0, 5]))
    exact = CodecHeader(codec="plain", vocab_size=300, values="float16", temperatures=())
    plain = PlainCodec(exact).encode(made_up(header(300, "float16", temperatures=()), [3, 0, 5]))
    for label, value in HUGE.items():
        for codec, own in ((PackedCodec(head), data), (PlainCodec(exact), plain)):
            name = type(codec).__name__
            yield f"{name} rows {label}", lambda c=codec, d=own, v=value: c.decode([(d, v, 8)])
            yield f"{name} entries {label}", lambda c=codec, d=own, v=value: c.decode([(d, 3, v)])
            both = f"{name} rows and entries {label}"
            yield both, lambda c=codec, d=own, v=value: c.decode([(d, v, v)])
    yield "k above V", lambda: PackedCodec(head).decode([(data, 3, 901)])
    for width in (5, 65, 255):
        changed = zstd(bytes([width] * 9) + bytes(100))
        yield f"{width} planes", lambda d=changed: PackedCodec(head).decode([(d, 3, 8)])
    rows = np.arange(1 << 20, dtype=np.int32)
    yield "maps of 2^20 tokens", lambda: decode_maps(SPEC, zstd(b"x"), rows, 1 << 20)
    yield "queries of 2^20 tokens", lambda: decode_qk(SPEC, zstd(b"x"), rows, 1 << 20)


def of_files() -> Iterator[Case]:
    """Heads of binary files."""
    index = build_index({"0a" * 32: [b"a" * 16]}).dump()
    for label, value in HUGE.items():
        forms = [(16, "<Q")] if value < 2**64 else []
        forms += [(12, "<I")] if value < 2**32 else []
        for place, form in forms:
            changed = (
                index[:place] + struct.pack(form, value) + index[place + struct.calcsize(form) :]
            )
            yield f"index at {place} {label}", lambda d=changed: load_index("index/x", d)
    for field in range(3):
        numbers = [300, 0, 0]
        numbers[field] = 2**31
        head = struct.pack("<8sIIII", b"CKDPRIOR", 1, *numbers)
        yield f"prior field {field}", lambda d=head: load_prior("x", d + zstd(b"x"))
    for label, value in {**HUGE, **ODD}.items():
        for name in ("shape", "data_offsets", "dtype"):
            entry = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
            entry[name] = {"shape": [value], "data_offsets": [0, value], "dtype": value}[name]
            text = json.dumps({"a": entry}).replace("Infinity", "1e400").encode()
            yield f"tensor {name} {label}", lambda t=text: load_tensors(tensors(t))
    for size in (2**31, 2**60, 2**64 - 1):
        data = pa.py_buffer(struct.pack("<Q", size) + b"{}")
        yield f"tensor header of {size}", lambda d=data: load_tensors(d)
    empty = {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(10_000)}
    for count in (300, 10_000):
        some = json.dumps(dict(list(empty.items())[:count])).encode()
        yield f"{count} empty tensors", lambda t=some: load_tensors(tensors(t, b""))
    rows = {name: [value] * 200_000 for name, value in SAMPLE.items()}
    table = write_table(rows, SAMPLES, {})
    yield "200 000 rows of samples", lambda: read_samples("x", table, 1 << 17)
    for name in ("n_tokens", "prompt_length"):
        one = write_table({n: [v] for n, v in {**SAMPLE, name: 2**31 - 1}.items()}, SAMPLES, {})
        yield f"samples of {name} 2^31 - 1", lambda d=one: read_samples("x", d)


SAMPLE: dict[str, Any] = {
    "sample_id": b"a" * 16, "key": b"b" * 16, "n_tokens": 2, "prompt_length": 1,
    "span_roles": [5], "span_ends": [2], "domain": "", "weight": 1.0, "source": "",
    "source_row": 0, "order": 0,
}  # fmt: skip


def tensors(text: bytes, body: bytes = b"abcd") -> pa.Buffer:
    """A safetensors file with this header."""
    return pa.py_buffer(struct.pack("<Q", len(text)) + text + body)


def zstd(content: bytes) -> bytes:
    """A frame as a writer makes it."""
    import zstandard

    return zstandard.ZstdCompressor(write_checksum=True).compress(content)
