"""Written vectors of the format: two decoders read the same from them, and refuse the same."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_decoder as reference
import zstandard
from ragged import assert_agree, rows_of

from cachekd.codecs import CodecHeader
from cachekd.codecs._priors import load_prior
from cachekd.data.digests import bytes_digest, json_id, sample_digest, sample_key
from cachekd.errors import CorruptCache
from cachekd.plugins import find
from cachekd.store.identity import capture_id
from cachekd.store.index import load_index
from cachekd.store.layout import load_document

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "format" / "vectors.json").read_text()
)


def numbers(value: Any) -> Any:
    """JSON has no infinity: it is written as text."""
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return -math.inf if value == "-inf" else value


PRIORS = {vector["digest"]: bytes.fromhex(vector["hex"]) for vector in VECTORS["priors"]}
records = pytest.mark.parametrize("vector", VECTORS["records"], ids=lambda vector: vector["name"])


def decoders(vector: dict[str, Any]) -> tuple[Any, Any]:
    """The codec of a vector, and a function that decodes a frame of its shape with the other."""
    header, prior = vector["header"], PRIORS.get(vector["header"]["prior"])
    shape = (vector["rows"], vector["entries"])
    codec = find("codecs", header["codec"])(
        CodecHeader.from_json(json.dumps(header)), prior and load_prior("x", prior)
    )
    parsed = prior and reference.parse_prior(prior)
    return codec, lambda frame: reference.decode(frame, header, *shape, parsed)


@records
def test_record_vectors(vector: dict[str, Any]) -> None:
    data, shape = bytes.fromhex(vector["hex"]), (vector["rows"], vector["entries"])
    want = {name: numbers(value) for name, value in vector["targets"].items()}
    want["lognorm"] = {t: values for t, values in want["lognorm"]}
    codec, other = decoders(vector)
    mine = rows_of(codec.decode([(data, *shape)])[0])
    assert_agree(mine, want, vector["header"]["values"])
    assert_agree(other(data), want, vector["header"]["values"])
    # The frame is the compressor's own; what is in it is the format's.
    again = codec.encode(codec.decode_unscaled([(data, *shape)])[0])
    assert zstandard.decompress(again) == zstandard.decompress(data)


@records
def test_two_decoders_refuse_the_same(vector: dict[str, Any]) -> None:
    """Whatever byte of the content is changed, both read the same from it, or nothing."""
    raw = zstandard.decompress(bytes.fromhex(vector["hex"]))
    codec, other = decoders(vector)
    refused = 0
    for place in range(len(raw)):
        for change in (1, 2, 0x80, 0xFF):
            content = bytearray(raw)
            content[place] ^= change
            frame = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(content))
            try:
                theirs = other(frame)
            except reference.FormatError:
                refused += 1
                with pytest.raises(CorruptCache):
                    codec.decode([(frame, vector["rows"], vector["entries"])])
                continue
            mine = rows_of(codec.decode([(frame, vector["rows"], vector["entries"])])[0])
            assert_agree(mine, theirs, vector["header"]["values"])
    assert refused


@records
def test_two_decoders_refuse_damaged_frames(vector: dict[str, Any]) -> None:
    data, (codec, other) = bytes.fromhex(vector["hex"]), decoders(vector)
    want, taken = other(data), []
    for bit in range(8 * len(data)):
        frame = bytearray(data)
        frame[bit // 8] ^= 1 << bit % 8
        try:
            found = other(bytes(frame))
        except (reference.FormatError, zstandard.ZstdError):
            with pytest.raises(CorruptCache):
                codec.decode([(bytes(frame), vector["rows"], vector["entries"])])
            continue
        assert found == want
        taken.append(bit)
    assert len(taken) <= 8, "only padding and the bit that decoders must ignore"


@pytest.mark.parametrize("vector", VECTORS["priors"])
def test_prior_vectors(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    assert bytes_digest(data) == vector["digest"]
    mine, theirs = load_prior("x", data), reference.parse_prior(data)
    assert mine.lists.tolist() == theirs["lists"] == vector["lists"]
    assert len(mine.log_unigram) == len(theirs["log_unigram"]) == vector["vocab_size"]
    by_unigram = mine.table[mine.lists.size :].tolist()
    assert by_unigram == theirs["by_unigram"]
    assert by_unigram[: len(vector["first_by_unigram"])] == vector["first_by_unigram"]
    for token, log in vector["log_unigram"].items():
        assert mine.log_unigram[int(token)] == theirs["log_unigram"][int(token)] == log


def test_digest_vectors() -> None:
    for vector in VECTORS["keys"]:
        ids, key = vector["input_ids"], bytes.fromhex(vector["key"])
        assert sample_key(np.array(ids, np.int32)) == reference.sample_key(ids) == key
        for sample in VECTORS["sample_ids"]:
            about = (sample["prompt_length"], sample["domain"], sample["weight"], sample["copy"])
            mine = sample_digest(key, np.array(sample["roles"], np.uint8), *about)
            assert mine == reference.sample_id(key, sample["roles"], *about)
            assert mine.hex() == sample["sample_id"]
    value = VECTORS["json"]["value"]
    assert json_id(value) == reference.json_id(value) == VECTORS["json"]["id"]
    assert capture_id(json_id(value), {"k": 1}) == VECTORS["json"]["capture_id"]


def test_index_vector() -> None:
    data = bytes.fromhex(VECTORS["index"]["hex"])
    mine, theirs = load_index("index/x", data), reference.parse_index(data)
    assert {key.hex(): list(place) for key, place in theirs.items()} == VECTORS["index"]["places"]
    for key, (shard, row) in theirs.items():
        found = mine.find(key)
        assert found and (mine.shards[found[0]], found[1]) == (shard, row)
    assert mine.dump() == data


def test_document_vector() -> None:
    data = VECTORS["document"].encode()
    mine, theirs = load_document("hint", "x", data), reference.parse_document("hint", data)
    assert mine == theirs and mine["newest"] == "manifest-7.json"
