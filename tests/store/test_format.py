"""The format as others read it: a second decoder, written vectors, DuckDB and datasets."""

from __future__ import annotations

import importlib.util
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
import zstandard
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.codecs import CodecHeader
from cachekd.codecs.plain import PlainCodec
from cachekd.data.digests import json_id, sample_digest, sample_key
from cachekd.store.identity import capture_id
from cachekd.store.index import load_index
from cachekd.store.io import Location
from cachekd.store.layout import load_document
from cachekd.store.state import read_state

FOLDER = Path(__file__).parent / "format"
VECTORS: dict[str, Any] = json.loads((FOLDER / "vectors.json").read_text())
ARRAYS = ("tail", "next_logprob", "entropy")


def _reference() -> Any:
    path = FOLDER / "reference_decoder.py"
    spec = importlib.util.spec_from_file_location("reference_decoder", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _reference()


def rows_of(targets: Any) -> dict[str, Any]:
    """Targets of cachekd in the shape that the reference decoder gives."""
    starts = targets.offsets.tolist()
    cuts = list(pairwise(starts))
    return {
        "ids": [targets.ids[a:b].tolist() for a, b in cuts],
        "logprobs": [targets.logprobs[a:b].tolist() for a, b in cuts],
        **{name: getattr(targets, name).tolist() for name in ARRAYS},
        "lognorm": {t: values.tolist() for t, values in targets.lognorm.items()},
    }


@pytest.fixture(scope="module", params=["float16", "float32"])
def real(
    request: pytest.FixtureRequest, family: Family, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A cache of a real tiny model, made in two runs, with rows left out and equal samples."""
    folder = tmp_path_factory.mktemp("real")
    rows = chat_rows(8)
    for part in (rows[:5], [*rows, rows[1]]):
        data = write_rows(folder / "data.jsonl", part)
        cachekd.precompute(
            PrecomputeConfig(
                teacher=str(family.teacher),
                data=(str(data),),
                cache=str(folder / "cache"),
                rows="response",
                temperatures=(0.5, 1.0, 2.0),
                logits_values=request.param,
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
        assert rows_of(record.logits) == other["targets"]
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
        for temperature in (1.0, 0.5, 2.0):
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


@pytest.mark.parametrize("vector", VECTORS["records"], ids=lambda vector: vector["name"])
def test_record_vectors(vector: dict[str, Any]) -> None:
    data, shape = bytes.fromhex(vector["hex"]), (vector["rows"], vector["entries"])
    want = {name: numbers(value) for name, value in vector["targets"].items()}
    want["lognorm"] = {t: values for t, values in want["lognorm"]}
    codec = PlainCodec(CodecHeader.from_json(json.dumps(vector["header"])))
    targets = codec.decode(data, *shape)
    assert rows_of(targets) == want
    assert reference.decode_plain(data, vector["header"], *shape) == want
    # The frame is the compressor's own; what is in it is the format's.
    assert zstandard.decompress(codec.encode(targets)) == zstandard.decompress(data)


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
    program = f"import runpy, sys; runpy.run_path({str(FOLDER / 'reference_decoder.py')!r}); "
    program += "print([m for m in ('cachekd', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    text = (FOLDER / "reference_decoder.py").read_text()
    assert set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)) == {
        "__future__", "base64", "collections", "hashlib", "json", "math", "pathlib", "pyarrow",
        "struct", "typing", "zstandard",
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
