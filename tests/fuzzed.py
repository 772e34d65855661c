"""Every parser of a file of a cache, as a function of bytes, with whole files to start from.

A target returns, or raises an error of cachekd; anything else is a finding. JSON documents get
their checksum made anew, and frames are packed anew, so that what is inside is reached.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard
from ragged import DIGEST, encoded, header, made_up, prior_of

from cachekd.codecs import Codec, CodecHeader
from cachekd.codecs._attention_maps import decode_maps, encode_maps
from cachekd.codecs._attention_qk import decode_qk, encode_qk
from cachekd.codecs._priors import load_prior
from cachekd.codecs.packed import PackedCodec
from cachekd.codecs.plain import PlainCodec
from cachekd.data.attention import AttentionSpec
from cachekd.data.digests import bytes_digest
from cachekd.data.packed import Keys
from cachekd.errors import CachekdError
from cachekd.rollouts.blocks import Block, assemble, codec_of, encode
from cachekd.store.collected import collect
from cachekd.store.generated import Responses, _possible
from cachekd.store.index import build_index, load_index
from cachekd.store.layout import dump_document
from cachekd.store.manifest import load_manifest
from cachekd.store.plan import Plan, PlannedBatch, load_plan
from cachekd.store.samples import read_samples
from cachekd.store.score_logs import MAGIC, pack, read_record
from cachekd.store.score_segments import _Builder, read_file
from cachekd.store.shards import impossible
from cachekd.store.state import load_unit
from cachekd.store.tables import (
    LOGITS,
    RESPONSES,
    SAMPLES,
    open_table,
    read_group,
    read_table,
    write_table,
)
from cachekd.store.tensors import dump_tensors, load_tensors
from cachekd.teachers import Selection

FACTS = {
    "digest": "0a" * 32, "bytes": 99, "rows": 2, "tokens": 9, "entries": 7, "footer": "0b" * 32,
    "prior": "0c" * 32,
}  # fmt: skip
SPEC = AttentionSpec(
    kind="maps", layers=(0,), heads=(0, 1), teacher_heads=2, key_heads=1, head_width=4, rows="all",
    share=1.0, seed=0, keys=0, values="sqrt", step=1 / 255,
)  # fmt: skip
QK = AttentionSpec(
    **{
        **SPEC.to_json(),
        "kind": "qk",
        "values": "qk",
        "layers": (0,),
        "heads": (0, 1),
        "step": 1 / 16,
    }
)
SAMPLE: dict[str, Any] = {
    "sample_id": [b"a" * 16], "key": [b"b" * 16], "n_tokens": [9], "prompt_length": [1],
    "span_roles": [[2, 3]], "span_ends": [[4, 9]], "domain": ["d"], "weight": [1.0],
    "source": ["s"], "source_row": [0], "order": [0],
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What is fed to a parser: whole files first."""

    seeds: tuple[bytes, ...]
    parse: Callable[[bytes], object]


def survives(target: Target, data: bytes) -> bool:
    """Whether the parser took the bytes; any error that is not of cachekd is raised."""
    try:
        target.parse(data)
    except CachekdError:
        return False
    return True


def _document(kind: str, parse: Callable[[bytes], object], content: dict[str, Any]) -> Target:
    def run(data: bytes) -> object:
        try:
            found = json.loads(data)
            if isinstance(found, dict):
                data = dump_document(kind, found)
        except (ValueError, RecursionError):
            found = None  # then the parser gets the bytes as they are
        return parse(data)

    return Target((json.dumps(content).encode(),), run)


def _of_plan() -> Target:
    plan = Plan(
        run="r", capture_id="0a" * 16, sequence=1, keys=Keys.of([b"a" * 16, b"b" * 16]),
        units=((PlannedBatch(0, 2, 8),),), threads=1, samples=("0d" * 32,), skipped={},
        changed={}, prior="0c" * 32, responses={"seed": 1},
    )  # fmt: skip
    content = json.loads(plan.dump()[1])
    return _document("plan", lambda d: load_plan(f"plans/{bytes_digest(d)}.json", d), content)


def _manifest() -> Target:
    attention = {k: FACTS[k] for k in ("digest", "bytes", "rows", "tokens")}
    content = {
        "generation": 1, "root": "0a" * 16, "source_id": "0b" * 16, "index": "0e" * 32,
        "kinds": {
            "logits": {"capture_id": "0c" * 16, "shards": [FACTS]},
            "attention": {
                "capture_id": "0d" * 16,
                "shards": [{**attention, "queries": 3, "logits": "0a" * 32}],
            },
        },
        "samples": ["0d" * 32], "priors": {"0c" * 32: 5}, "files": {"cache.json": "0f" * 32},
        "totals": {"samples": 2},
        "runs": [{"plan": "0f" * 32, "skipped": {}, "changed": {"a": 1}}],
    }  # fmt: skip
    return _document("manifest", lambda d: load_manifest("manifest-1.json", d, 1), content)


def _unit() -> Target:
    name = f"units/{'0f' * 32}-0.json"
    content = {"plan": "0f" * 32, "unit": 0, "shards": {"logits": FACTS}, "numerics": {"a": 1}}
    return _document("unit", lambda d: load_unit(name, d), content)


def _frame(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def _codec(codec: Codec, head: CodecHeader) -> Target:
    """Two bytes of rows, two of entries, then the content of a frame, or a frame."""

    def run(data: bytes) -> object:
        rows, entries = struct.unpack_from("<HH", data.ljust(4, b"\0"))
        content = data[4:]
        try:
            return check(rows, entries, content)
        except CachekdError:
            return check(rows, entries, _frame(content))

    def check(rows: int, entries: int, frame: bytes) -> object:
        (targets,) = codec.decode([(frame, rows, entries)])
        assert len(targets.ids) == entries and targets.rows == rows
        assert entries == 0 or 0 <= targets.ids.min() <= targets.ids.max() < head.vocab_size
        return impossible(targets)

    data, rows, entries = encoded(codec, made_up(head, [3, 0, 5]))
    shape = struct.pack("<HH", rows, entries)
    return Target((shape + zstandard.decompress(data), shape + data), run)


def _layer(spec: AttentionSpec) -> Target:
    rows, length = np.arange(4, dtype=np.int32), 4
    rng = np.random.default_rng(0)
    if spec.kind == "qk":
        data = encode_qk(spec, rng.normal(size=(2, 4, 4)), rng.normal(size=(1, 4, 4)))
    else:
        maps = np.tril(rng.random((2, 4, 4)).astype(np.float32))
        data = encode_maps(spec, maps / maps.sum(-1, keepdims=True), rows)
    decode = decode_qk if spec.kind == "qk" else decode_maps

    def run(data: bytes) -> object:
        try:
            return decode(spec, data, rows, length)
        except CachekdError:
            return decode(spec, _frame(data), rows, length)

    return Target((zstandard.decompress(data), data), run)


def _prior() -> Target:
    def run(data: bytes) -> object:
        try:
            return load_prior("x", data)
        except CachekdError:
            return load_prior("x", data[:24] + _frame(data[24:]))

    data = prior_of(30, 2, 4).dump()
    return Target((data[:24] + zstandard.decompress(data[24:]), data), run)


def _samples(data: bytes) -> object:
    table = collect([(read_samples("x", pa.py_buffer(data)), False)])
    return [table.roles(i) for i in range(len(table.ids))]


def _logits(data: bytes) -> object:
    table = open_table("x", pa.py_buffer(data), LOGITS, rows=4, values=64)
    return [read_group(table, group) for group in range(len(table.rows))]


def _responses(data: bytes) -> object:
    table = read_table("x", pa.py_buffer(data), RESPONSES, 4)
    return Responses([table]) if table.num_rows and _possible(table, 10, 9) else None


def _score_file(data: bytes) -> object:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        descriptor = file.fileno()
        entries, end = read_file(descriptor, 0)
        assert 0 <= end <= os.fstat(descriptor).st_size
        places = [
            (bytes(entry["key"]).ljust(16, b"\0"), int(entry["offset"]), int(entry["length"]))
            for entry in entries
        ]
        return [_score(read_record(descriptor, *place)) for place in places]


def _score(value: bytes | None) -> object:
    """The rows of a block, which a store gives back as they were written."""
    if value is None:
        return None
    return assemble(_BLOCKS, [_BLOCK], {_BLOCK.key: value}, 0)


_BLOCK = Block(b"k" * 16, 0, 3)
_BLOCKS = codec_of(Selection(k=5, p=1.0, min_k=1, vocab_size=300, temperatures=()))


def _scores() -> Target:
    head = header(300, "float32", temperatures=())
    value = encode(_BLOCKS, made_up(head, [3, 2, 5]), _BLOCK)
    builder = _Builder()
    builder.add(b"a" * 16, value)
    return Target((MAGIC + pack(b"a" * 16, value) * 2, builder.finish()), _score_file)


def _json(parse: Callable[[Any], object], content: Any) -> Target:
    return Target((json.dumps(content).encode(),), parse)


def _spec(data: bytes) -> object:
    from cachekd.data.strict import parse_json

    try:
        value = parse_json(data)
    except ValueError:
        return None
    return AttentionSpec.from_json(value)


def targets() -> dict[str, Target]:
    """All parsers by name."""
    exact = CodecHeader(codec="plain", vocab_size=300, values="float16", temperatures=(2.0,))
    tau = header(300, tau=0.5, prior=DIGEST)
    logits = {
        "key": [b"a" * 16], "n_tokens": [3], "n_entries": [2], "input_ids": [[1, 2, 3]],
        "targets": [b"xyz"],
    }  # fmt: skip
    responses = {"prompt": [b"a" * 16], "number": [0], "response": [[1, 2]]}
    tensors = dump_tensors(
        {"a": np.arange(3, dtype="<i4"), "b": np.zeros((2, 2), "u1")}, {"m": "x"}
    )
    return {
        "manifest": _manifest(),
        "plan": _of_plan(),
        "unit": _unit(),
        "codec header": _json(CodecHeader.from_json, json.loads(exact.to_json())),
        "attention spec": _json(_spec, SPEC.to_json()),
        "plain": _codec(PlainCodec(exact), exact),
        "packed": _codec(PackedCodec(header(300)), header(300)),
        "packed with a prior": _codec(PackedCodec(tau, prior_of(300, 3, 20)), tau),
        "attention maps": _layer(SPEC),
        "attention queries": _layer(QK),
        "prior": _prior(),
        "index": Target((build_index({"0a" * 32: [b"a" * 16, b"b" * 16]}).dump(),), _index),
        "samples": Target((bytes(write_table(SAMPLE, SAMPLES, {})),), _samples),
        "logits": Target((bytes(write_table(logits, LOGITS, {})),), _logits),
        "responses": Target((bytes(write_table(responses, RESPONSES, {})),), _responses),
        "safetensors": Target((bytes(tensors),), lambda data: load_tensors(pa.py_buffer(data))),
        "score log": _scores(),
    }


def _index(data: bytes) -> object:
    index = load_index("index/x", data)
    return index.find(b"a" * 16), index.holds(Keys.of([b"b" * 16]))
