"""Damage of any file: verify says so, and reading gives the records that were written or an error.

Random damage, counted, is in ``test_verify_damage.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import NOT_TRUSTED, contents, names_of, put

import cachekd
from cachekd.data.digests import bytes_digest, json_id
from cachekd.errors import CorruptCache, StoreError, UnsealedCache
from cachekd.store.io import Location
from cachekd.store.layout import dump_document
from cachekd.store.seal import seal
from cachekd.store.shards import impossible
from cachekd.store.verify import VerifyReport, verify


def shards_of(cache: Path) -> list[Path]:
    return sorted((cache / "logits").glob("*.parquet"))


def assert_true_or_refused(cache: Path, name: str, truth: list[bytes]) -> None:
    try:
        found = contents(cache)
    except StoreError as error:
        assert name in str(error), f"{error!r} does not name {name}"
    else:
        assert found == truth


def test_every_kind_of_file_is_there_to_be_damaged(cache: Path) -> None:
    folders = {name.split("/")[0] for name in names_of(cache)}
    assert folders == {
        "cache.json", "logits", "plans", "priors", "units", "samples", "index", "manifest-1.json",
        *NOT_TRUSTED,
    }  # fmt: skip
    assert len(names_of(cache)) > 12


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_found(cache: Path, kept: float) -> None:
    truth = contents(cache)
    for name in names_of(cache):
        whole = (cache / name).read_bytes()
        put(cache / name, whole[: int(kept * len(whole))])
        assert_true_or_refused(cache, name, truth)
        if name not in NOT_TRUSTED:
            assert any(name in line for line in verify(str(cache)).problems), name
        put(cache / name, whole)


def test_a_deleted_file_is_found(cache: Path) -> None:
    truth = contents(cache)
    for name in names_of(cache):
        whole = (cache / name).read_bytes()
        (cache / name).unlink()
        if name in ("cache.json", "manifest-1.json"):
            with pytest.raises((CorruptCache, UnsealedCache)):
                cachekd.open_cache(str(cache))
            assert [problem.file for problem in verify(str(cache)).findings] == [name]
        else:
            assert_true_or_refused(cache, name, truth)
            missing = [line for line in verify(str(cache)).problems if name in line]
            assert bool(missing) != (name in NOT_TRUSTED)
            assert all("the file is missing" in line for line in missing)
        put(cache / name, whole)


def swap(cache: Path, folder: str, pattern: str) -> list[str]:
    left, right = sorted((cache / folder).glob(pattern))[:2]
    data = left.read_bytes(), right.read_bytes()
    put(left, data[1])
    put(right, data[0])
    return [left.name, right.name]


@pytest.mark.parametrize(("folder", "pattern"), [("logits", "*.parquet"), ("units", "*.json")])
def test_two_files_that_changed_places_are_found(cache: Path, folder: str, pattern: str) -> None:
    truth = contents(cache)
    names = swap(cache, folder, pattern)
    problems = verify(str(cache)).problems
    assert all(any(name in line for line in problems) for name in names)
    if folder == "logits":
        with pytest.raises(CorruptCache):
            contents(cache)
    else:
        assert contents(cache) == truth, "a sealed cache does not read them"
        with pytest.raises(CorruptCache, match="record of another unit"):
            cachekd.open_cache(str(cache), partial=True)
        assert verify(str(cache), partial=True).problems


def test_all_problems_are_listed(cache: Path) -> None:
    names = [name for name in names_of(cache) if name.startswith(("logits/", "units/"))]
    names.remove("logits/capture.json")
    for name in names:
        put(cache / name, b"x" * (cache / name).stat().st_size)
    report = verify(str(cache))
    assert all(any(name in line for line in report.problems) for name in names)
    assert report.records == 0 and report.sealed


def test_an_unnamed_file_changes_nothing(cache: Path) -> None:
    truth = contents(cache)
    for name in ("logits/" + "0" * 64 + ".parquet", "units/.tmp-1", "plans/x.json", "notes.txt"):
        (cache / name).write_bytes(b"x")
    assert contents(cache) == truth and verify(str(cache)).problems == ()
    assert seal(Location(str(cache))).generation == 1


def resealed(cache: Path, change: Callable[[dict[str, Any]], None]) -> VerifyReport:
    """A seal that somebody wrote anew after a change: its checksum fits."""
    path = cache / "manifest-1.json"
    document = json.loads(path.read_text())
    change(document)
    for name in ("format", "checksum"):
        del document[name]
    put(path, dump_document("manifest", document))
    return verify(str(cache))


def test_a_seal_must_fit_what_it_names(cache: Path) -> None:
    assert resealed(cache, lambda document: None).problems == ()
    (problem,) = resealed(cache, lambda d: d.update(root="0" * 32)).problems
    assert "root digest" in problem and "manifest-1.json" in problem


@pytest.mark.parametrize("place", [-4, -4 * 9 - 4])
def test_an_index_must_point_to_the_rows_of_the_shards(cache: Path, place: int) -> None:
    """One whose digest was made anew: only the records themselves tell."""
    (path,) = (cache / "index").iterdir()
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    digest = bytes_digest(bytes(data))
    (cache / "index" / digest).write_bytes(data)
    (problem,) = resealed(cache, lambda d: d.update(index=digest)).problems
    assert digest in problem and "points to the rows of the shards" in problem
    with pytest.raises(CorruptCache):
        contents(cache)


@pytest.mark.parametrize("field", ["files", "totals", "runs", "kinds", "samples"])
@pytest.mark.parametrize("value", [7, [7], ["abc"], None])
def test_a_seal_of_other_types_is_no_seal(cache: Path, field: str, value: object) -> None:
    problems = resealed(cache, lambda d: d.update({field: value})).problems
    assert problems
    if field != "samples":
        assert "manifest-1.json: expected a seal" in problems[0]


def test_totals_of_a_seal_are_counted_again(cache: Path) -> None:
    (problem,) = resealed(cache, lambda d: d["totals"].update(samples=11)).problems
    assert "expected the totals of the files" in problem


def test_counts_of_a_shard_are_counted_again(cache: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["kinds"]["logits"]["shards"][0]["entries"] += 1
        document["totals"]["entries"] += 1

    totals, kinds = sorted(resealed(cache, change).problems)[::-1]
    assert "totals" in totals and "the field kinds" in kinds


def test_a_shard_of_another_capture_is_found(cache: Path) -> None:
    document = json.loads((cache / "logits" / "capture.json").read_text())
    document["capture"]["temperatures"] = [1.0, 3.0]
    facts = {"source_id": document["source_id"], "capture": document["capture"]}
    document["capture_id"] = json_id(facts)
    for name in ("format", "checksum"):
        del document[name]
    put(cache / "logits" / "capture.json", dump_document("capture", document))
    with pytest.raises(CorruptCache, match="another identity"):
        cachekd.open_cache(str(cache))
    lines = verify(str(cache)).problems
    assert sum("it holds another capture" in line for line in lines) == len(shards_of(cache))


def test_an_id_must_be_that_of_its_facts(cache: Path) -> None:
    """Other facts under an old id: shards would be read as what they are not."""
    for name, kind, part in (
        ("cache.json", "cache", "source"),
        ("logits/capture.json", "capture", "capture"),
    ):
        whole = (cache / name).read_bytes()
        document = json.loads(whole)
        document[part]["dtype"] = "float64"
        for field in ("format", "checksum"):
            del document[field]
        put(cache / name, dump_document(kind, document))
        with pytest.raises(CorruptCache, match="have the id"):
            cachekd.open_cache(str(cache))
        (problem,) = verify(str(cache)).problems
        assert "have the id" in problem
        put(cache / name, whole)
    assert verify(str(cache)).problems == ()


def test_progress_counts_every_record(cache: Path) -> None:
    steps: list[tuple[int, int]] = []
    report = verify(str(cache), progress=lambda done, whole: steps.append((done, whole)))
    assert steps == [(i + 1, 9) for i in range(9)] and report.records == 9
    assert report.files == len(set(names_of(cache)) - NOT_TRUSTED)
    assert report.shards == report.shards_checked == len(shards_of(cache))


def test_what_is_no_distribution_is_found(cache: Path) -> None:
    from dataclasses import replace

    good = cachekd.open_cache(str(cache))[0].logits
    assert impossible(good) is None
    first = slice(*good.offsets[:2])

    def changed(name: str, place: Any, value: Any) -> Any:
        values = getattr(good, name).copy()
        values[place] = value
        return replace(good, **{name: values})

    cases = {
        "NaN": [changed("tail", 1, np.nan), changed("logprobs", 1, np.nan)],
        "above 0": [changed("logprobs", 0, 0.5), changed("tail", 0, 0.5)],
        "falling": [changed("logprobs", first, good.logprobs[first][::-1])],
        "twice": [changed("ids", 1, good.ids[0])],
        "mass 1": [changed("tail", 0, 0.0)],
    }
    for word, damaged in cases.items():
        for targets in damaged:
            assert word in (impossible(targets) or ""), word


def test_a_lost_prior_is_said_once_however_many_shards_need_it(cache: Path) -> None:
    (prior,) = (cache / "priors").iterdir()
    prior.unlink()
    assert len(list((cache / "logits").glob("*.parquet"))) > 1
    problems = [text for text in verify(str(cache)).problems if prior.name in text]
    assert len(problems) == 1 and "missing" in problems[0]
