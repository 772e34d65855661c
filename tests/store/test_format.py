"""The format as others read it: a second decoder, DuckDB, datasets, and people."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_decoder as reference
from ragged import assert_agree, rows_of
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.codecs import CodecHeader
from cachekd.store.io import Location
from cachekd.store.shards import ShardFacts
from cachekd.store.state import read_state
from cachekd.store.tables import LOGITS, SAMPLES

FOLDERS = ("index", "logits", "plans", "priors", "samples", "units")
FOLDER = Path(__file__).parent / "format"


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
    assert set(seen) == set(state.done_keys()) and len(seen) == 8


def test_decoded_rows_have_mass_one(real: Path) -> None:
    """Also what the loss decodes is what the format says."""
    from cachekd.losses.targets import decode_targets
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


def test_the_format_page_names_every_field(sealed: Path) -> None:
    """All that stands in documents, headers, facts and tables of a cache."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    page = readme.split("## The format")[1].split("## The tree")[0]
    names: set[str] = {field.name for field in fields(CodecHeader)}
    names |= {field.name for field in fields(ShardFacts)} | {f"{name}/" for name in FOLDERS}
    for path in sealed.rglob("*.json"):
        names |= json.loads(path.read_text()).keys()
    names |= {*SAMPLES.names, *LOGITS.names, "CKDPRIOR", "CKDINDEX", "weights", "recoded"}
    names.add("repaired")  # only in seals of repaired caches
    lacking = {name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}", page)}
    assert not lacking and len(names) > 60
    assert {path.name for path in sealed.iterdir() if path.is_dir()} == set(FOLDERS)
