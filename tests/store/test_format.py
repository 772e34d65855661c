"""The format as others read it: a second decoder, written vectors, DuckDB and datasets."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_decoder as reference
import zstandard
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.codecs import CodecHeader
from cachekd.codecs._priors import load_prior
from cachekd.data.digests import bytes_digest, json_id, sample_digest, sample_key
from cachekd.errors import CorruptCache
from cachekd.plugins import find
from cachekd.store.identity import capture_id
from cachekd.store.index import load_index
from cachekd.store.io import Location
from cachekd.store.layout import load_document
from cachekd.store.state import read_state

FOLDER = Path(__file__).parent / "format"
VECTORS: dict[str, Any] = json.loads((FOLDER / "vectors.json").read_text())
ARRAYS = ("tail", "next_logprob", "entropy")


def rows_of(targets: Any) -> dict[str, Any]:
    """Targets of cachekd in the shape that the reference decoder gives."""
    starts = targets.offsets.tolist()
    cuts = list(pairwise(starts))
    return {
        "ids": [targets.ids[a:b].tolist() for a, b in cuts],
        "logprobs": [targets.logprobs[a:b].tolist() for a, b in cuts],
        "weights": targets.weights
        if targets.weights is None
        else [targets.weights[a:b].tolist() for a, b in cuts],
        **{name: getattr(targets, name).tolist() for name in ARRAYS},
        "lognorm": {t: values.tolist() for t, values in targets.lognorm.items()},
    }


def assert_agree(left: dict[str, Any], right: dict[str, Any], values: str) -> None:
    """Ids and exact values to the bit; levels to what float32 and another logarithm can differ."""
    assert left["ids"] == right["ids"] and left.keys() == right.keys()
    tolerance = 0.0 if values in ("float16", "float32") else 3e-6
    for name in ("tail", "next_logprob", "entropy"):
        assert np.allclose(left[name], right[name], tolerance, tolerance, equal_nan=True), name
    assert left["lognorm"].keys() == right["lognorm"].keys()
    for t, norms in left["lognorm"].items():
        assert np.allclose(norms, right["lognorm"][t], tolerance, tolerance, equal_nan=True)
    assert (left["weights"] is None) == (right["weights"] is None)
    for name in ("logprobs", "weights"):
        if left["weights"] is not None:
            tolerance = 3e-6  # logarithms of weights
        for mine, theirs in zip(left[name] or [], right[name] or [], strict=True):
            assert np.allclose(mine, theirs, tolerance, tolerance, equal_nan=True), name


@pytest.fixture(
    scope="module",
    params=[
        ("plain", "float16", (0.5, 1.0, 2.0)),
        ("plain", "float32", (1.0,)),
        ("packed", "float16", (1.0, 4.0)),
        ("packed", "float32", (0.5, 1.0, 2.0)),
        ("packed", "sqrt", (0.5, 1.0, 2.0)),
        ("packed", "log", (1.0, 2.0)),
    ],
    ids=lambda param: "-".join(param[:2]),
)
def real(
    request: pytest.FixtureRequest, family: Family, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A cache of a real tiny model, made in two runs, with rows left out and equal samples."""
    folder = tmp_path_factory.mktemp("real")
    rows = chat_rows(8)
    codec, values, temperatures = request.param
    for part in (rows[:5], [*rows, rows[1]]):
        data = write_rows(folder / "data.jsonl", part)
        cachekd.precompute(
            PrecomputeConfig(
                teacher=str(family.teacher),
                data=(str(data),),
                cache=str(folder / "cache"),
                rows="response",
                temperatures=temperatures,
                codec=codec,
                logits_values=values,
                threads=1,
                unit_tokens=80,
                batch_tokens=80,
            )
        )
    return folder / "cache"


def test_two_decoders_read_the_same_cache(real: Path) -> None:
    mine = cachekd.open_cache(str(real))
    theirs = list(reference.Reader(real).records())
    assert len(mine) == len(theirs) == 9
    for record, other in zip(mine, theirs, strict=True):
        assert record.key == other["key"] == reference.sample_key(other["input_ids"])
        assert record.sample_id == other["sample_id"]
        assert record.input_ids.tolist() == other["input_ids"]
        assert record.roles.tolist() == other["roles"]
        for name in ("prompt_length", "domain", "weight"):
            assert getattr(record, name) == other[name]
        values = mine.identity.capture["logprobs"]["values"]
        assert_agree(rows_of(record.logits), other["targets"], values)
        about = (other["roles"], record.prompt_length, record.domain, record.weight)
        ids = {reference.sample_id(record.key, *about, copy) for copy in range(2)}
        assert record.sample_id in ids


def test_plans_name_the_rows_of_their_shards(real: Path) -> None:
    state = read_state(Location(str(real)))
    reader = reference.Reader(real)
    seen = []
    for path in (real / "units").iterdir():
        unit = reference.parse_document("unit", path.read_bytes())
        keys = reference.plan_keys((real / "plans" / f"{unit['plan']}.json").read_bytes())
        stored = [row["key"] for row in reader.shard(unit["shards"]["logits"]["digest"])[1]]
        assert stored == sorted(keys[unit["unit"]])
        assert [unit["key_min"], unit["key_max"]] == [stored[0].hex(), stored[-1].hex()]
        seen += stored
    assert set(seen) == state.done_keys() and len(seen) == 8


def test_decoded_rows_have_mass_one(real: Path) -> None:
    """Also what the loss decodes is what the format says."""
    from cachekd.losses.divergences import decode_targets
    from cachekd.training.collate import collate_targets

    for record in cachekd.open_cache(str(real)):
        rows = np.flatnonzero(np.diff(record.logits.offsets))
        targets = collate_targets([(record, rows)])
        for temperature in record.logits.lognorm:
            head, tail = decode_targets(targets, temperature)
            place = 0
            for n, t in enumerate(rows.tolist()):
                part = slice(*record.logits.offsets[t : t + 2])
                want, rest = reference.distribution(
                    record.logits.logprobs[part].tolist(),
                    float(record.logits.tail[t]),
                    temperature,
                    float(record.logits.lognorm[temperature][t]),
                )
                assert abs(math.fsum(want) + rest - 1) < 1e-6
                found = head[place : place + len(want)].exp().tolist()
                assert np.allclose(found, want, atol=2e-6) and len(found) == len(want)
                assert abs(float(tail[n].exp()) - rest) < 2e-6
                place += len(want)


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
    assert taken in ([], [4 * 8 + 4]), "only a bit of the frame that decoders must ignore"


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


def test_the_reference_decoder_refuses_damage(cache: Path) -> None:
    victim = sorted((cache / "logits").glob("*.parquet"))[0]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(reference.FormatError, match=re.escape(victim.name)):
        list(reference.Reader(cache).records())


def test_the_reference_decoder_stands_alone() -> None:
    program = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import reference_decoder; "
    program += "print([m for m in ('cachekd', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    files = ("reference_decoder.py", "reference_records.py")
    text = "".join((FOLDER / name).read_text() for name in files)
    assert set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)) == {
        "__future__", "base64", "collections", "hashlib", "json", "math", "pathlib", "pyarrow",
        "reference_records", "struct", "typing", "zstandard",
    }  # fmt: skip


def test_duckdb_reads_a_cache(sealed: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    cache = cachekd.open_cache(str(sealed))
    logits, samples = (f"'{sealed}/{kind}/*.parquet'" for kind in ("logits", "samples"))
    with duckdb.connect() as connection:

        def ask(query: str) -> Any:
            return connection.execute(query).fetchone()

        found = ask(f"select count(*), sum(len(input_ids)), sum(n_entries) from {logits}")
        assert found == tuple(cache.totals[name] for name in ("keys", "tokens", "entries"))
        found = ask(
            f"select count(*), sum(len(l.input_ids)), sum(s.n_tokens), count(distinct s.domain) "
            f"from {samples} s join {logits} l on s.key = l.key"
        )
        assert found == (10, *[cache.totals["sample_tokens"]] * 2, 2)


def test_datasets_reads_a_cache(sealed: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    cache = cachekd.open_cache(str(sealed))
    files = {"logits": f"{sealed}/logits/*.parquet", "samples": f"{sealed}/samples/*.parquet"}
    for kind, pattern in files.items():
        table = datasets.load_dataset(
            "parquet", data_files=pattern, cache_dir=str(tmp_path), split="train"
        )
        assert len(table) == cache.totals[{"logits": "keys"}.get(kind, kind)]
        if kind == "logits":
            by_key = {row["key"]: row["input_ids"] for row in table}
            assert all(by_key[record.key] == record.input_ids.tolist() for record in cache)
