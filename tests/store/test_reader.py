"""Opening and reading: order, lookup, seals that stay what they are, another process."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import chat_rows

import cachekd
from cachekd.data.digests import sample_key
from cachekd.errors import CacheNotFound, CorruptCache, StoreError, UnsealedCache
from cachekd.store.collected import collect
from cachekd.store.io import Location
from cachekd.store.layout import dump_document
from cachekd.store.reader import Cache
from cachekd.store.samples import keys_of, read_samples, sample_ids, write_samples
from cachekd.store.seal import seal
from cachekd.store.state import read_state
from cachekd.store.verify import verify
from cachekd.types import Record, Role, Sample

Maker = Callable[..., dict[str, Any]]


def flat(record: Record) -> tuple[Any, ...]:
    """All of a record as values that compare."""
    logits = record.logits
    arrays = (record.input_ids, record.roles, logits.offsets, logits.ids, logits.logprobs)
    arrays += (logits.tail, logits.next_logprob, logits.entropy, *logits.lognorm.values())
    about = (record.key, record.sample_id, record.prompt_length, record.domain, record.weight)
    return (*about, *(array.tobytes() for array in arrays))


def test_records_come_in_the_order_of_the_data(sealed: Path) -> None:
    cache = cachekd.open_cache(str(sealed))
    assert len(cache) == 10 and cache.sealed and len(cache.manifest.shards) > 2  # type: ignore[union-attr]
    records = list(cache)
    assert [record.domain for record in records] == [f"d{i % 2}" for i in range(9)] + ["d0"]
    assert flat(records[9])[5:] == flat(records[0])[5:], "the last row is the first once more"
    for i, record in enumerate(records):
        assert record.key == sample_key(record.input_ids)
        assert record.sample_id == cache.sample_ids[i] and len(record.input_ids) == cache.lengths[i]
        assert len(record.roles) == len(record.input_ids) == record.logits.rows + 1
        assert flat(cache[i - len(cache)]) == flat(cache[np.int64(i)]) == flat(record)
    for i in (10, -11):
        with pytest.raises(IndexError, match="has 10 samples; asked for number"):
            cache[i]


def test_a_record_is_found_by_its_tokens(sealed: Path) -> None:
    cache = cachekd.open_cache(str(sealed), name="mine")
    for i in range(9):
        assert flat(cache.get(cache[i].input_ids)) == flat(cache[i])
    assert flat(cache.get(cache[9].input_ids)) == flat(cache[0]), "of equal rows, the first"
    assert flat(cache.get(cache[3].input_ids.tolist())) == flat(cache[3])  # type: ignore[arg-type]
    for wrong in (cache[0].input_ids[:-1], cache[0].input_ids[::-1], np.int32([1, 2])):
        with pytest.raises(KeyError, match=f"mine has no targets for these {len(wrong)} token"):
            cache.get(wrong)


def test_nothing_there(tmp_path: Path) -> None:
    for open_ in (lambda: cachekd.open_cache(str(tmp_path)), lambda: verify(str(tmp_path))):
        with pytest.raises(CacheNotFound, match=r"has no cache\.json"):
            open_()


def test_without_a_seal_only_on_request(make_cache: Maker, tmp_path: Path) -> None:
    url = str(tmp_path / "cache")
    make_cache(url, chat_rows(9), seal=False)
    for refused in (cachekd.open_cache, verify):
        with pytest.raises(UnsealedCache, match="partial"):
            refused(url)
    cache = cachekd.open_cache(url, partial=True)
    assert len(cache) == 9 and not cache.sealed and cache.root is None
    records = [flat(record) for record in cache]
    root = seal(Location(url)).root
    whole = cachekd.open_cache(url)
    assert whole.root == root and [flat(record) for record in whole] == records
    assert whole.totals == cache.totals


@pytest.mark.parametrize("left", [0, 2])
def test_a_part_is_read_as_far_as_it_goes(make_cache: Maker, tmp_path: Path, left: int) -> None:
    folder = tmp_path / "cache"
    make_cache(folder, chat_rows(9), seal=False)
    whole = cachekd.open_cache(str(folder), partial=True)
    for record in sorted((folder / "units").iterdir())[left:]:
        record.unlink()
    part = cachekd.open_cache(str(folder), partial=True)
    held = read_state(Location(str(folder))).done_keys()
    assert (len(held) > 0) == (left > 0)
    wanted = [flat(record) for record in whole if record.key in held]
    assert len(part) == len(wanted) < 9 and [flat(record) for record in part] == wanted
    assert part.totals["samples"] == len(part) and part.totals["keys"] == len(held)
    report = verify(str(folder), partial=True)
    assert report.problems == () and report.records == len(held) and not report.sealed
    with pytest.raises(UnsealedCache, match=f"{9 - len(held)} of 9 samples have no targets"):
        seal(Location(str(folder)))


def test_a_seal_stays_what_it_is_until_there_is_a_newer(make_cache: Maker, cache: Path) -> None:
    before = cachekd.open_cache(str(cache))
    records, root = [flat(record) for record in before], before.root
    make_cache(cache, chat_rows(12, first=20), seal=False)
    sealed = cachekd.open_cache(str(cache))
    assert sealed.root == root and [flat(record) for record in sealed] == records
    assert len(cachekd.open_cache(str(cache), partial=True)) == 22
    assert verify(str(cache)).problems == verify(str(cache), partial=True).problems == ()
    newer = seal(Location(str(cache)))
    assert newer.generation == 2 and newer.root != root
    after = cachekd.open_cache(str(cache))
    assert len(after) == 22 and [flat(after[i]) for i in range(10)] == records
    assert [flat(record) for record in before] == records, "an open cache does not notice"


def test_sealing_twice_is_sealing_once(cache: Path) -> None:
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    assert seal(Location(str(cache))).generation == 1
    assert before == {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def test_the_root_does_not_tell_who_made_it(
    make_cache: Maker, sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = make_cache(tmp_path / "a", chat_rows(9))
    monkeypatch.setattr("platform.node", lambda: "a machine of somebody else")
    theirs = make_cache(tmp_path / "b", chat_rows(9))
    assert mine["root"] == theirs["root"]
    left, right = (cachekd.open_cache(str(tmp_path / name)).manifest for name in ("a", "b"))
    assert left and right and left.files != right.files, "commit records do tell"
    assert mine["root"] != cachekd.open_cache(str(sealed)).root, "other samples, another root"


def _read(cache: Cache) -> list[tuple[Any, ...]]:
    return [flat(record) for record in cache]


def test_a_pickled_cache_reads_in_another_process(sealed: Path) -> None:
    cache = cachekd.open_cache(str(sealed))
    here = _read(cache)
    assert len(pickle.dumps(cache)) < 50_000, "open shards do not travel"
    assert _read(pickle.loads(pickle.dumps(cache))) == here
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_read, (cache,)) == here


@pytest.mark.parametrize("name", ["cache.json", "logits/capture.json", "manifest-1.json"])
@pytest.mark.parametrize("version", [0, 1, 3, "2", None])
def test_another_format_version_is_refused(cache: Path, name: str, version: object) -> None:
    path = cache / name
    document = json.loads(path.read_text())
    kind = document["format"].removeprefix("cachekd-")
    for field in ("format", "checksum"):
        del document[field]
    path.write_bytes(dump_document(kind, {**document, "version": version}))
    with pytest.raises(
        StoreError, match=f"{name} has format version {version}; .* reads version 2"
    ):
        cachekd.open_cache(str(cache))


def test_identities_of_two_caches_do_not_mix(
    make_cache: Maker, cache: Path, tmp_path: Path
) -> None:
    make_cache(tmp_path / "other", chat_rows(3), logits_top_k=4)
    shutil.copy(tmp_path / "other" / "logits" / "capture.json", cache / "logits" / "capture.json")
    with pytest.raises(CorruptCache, match="another identity"):
        cachekd.open_cache(str(cache))


roles = st.lists(st.sampled_from(list(Role)), min_size=2, max_size=40)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(roles, st.none() | st.integers(0, 40), st.sampled_from(["", "a", "ü"])),
                max_size=6), st.booleans())  # fmt: skip
def test_samples_come_back(values: list[tuple[list[Role], int | None, str]], on_disk: bool) -> None:
    samples = [
        Sample(
            input_ids=np.arange(len(parts), dtype=np.int32) + 5,
            roles=np.array(parts, dtype=np.uint8),
            prompt_length=prompt,
            domain=domain,
            weight=0.5 + i,
        )
        for i, (parts, prompt, domain) in enumerate(values)
    ]
    keys = keys_of(samples)
    ids = sample_ids(samples, keys)
    assert len(set(ids)) == len(ids)
    half = len(samples) // 2
    tables = [
        read_samples(
            "x", write_samples(samples[part], keys[part], ids[part], range(len(ids[part])))
        )
        for part in (slice(0, half), slice(half, None), slice(0, half))
    ]
    parts = [(table, place == 1) for place, table in enumerate(tables)]
    table = collect(parts, on_disk=on_disk)
    assert table.ids == ids and table.keys == keys
    assert table.written.tolist() == [False] * half + [True] * (len(ids) - half)
    for i, sample in enumerate(samples):
        assert np.array_equal(table.roles(i), sample.roles) and table.roles(i).dtype == np.uint8
        assert table.lengths[i] == len(sample.roles) and table.weights[i] == sample.weight
        assert table.prompt_lengths[i] == (
            -1 if sample.prompt_length is None else sample.prompt_length
        )
    places = list(range(len(ids)))[::-2]
    some = table.take(places)
    assert some.ids == [ids[i] for i in places] and some.domains == [values[i][2] for i in places]
    for place, i in enumerate(places):
        assert np.array_equal(some.roles(place), samples[i].roles)
