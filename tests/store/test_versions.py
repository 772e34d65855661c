"""Files of a version stay readable, and what a later version may add is refused or left alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_decoder as reference
from forged import DOORS, OF_SEAL, OF_STATE, forge, load, put, read_all
from make_fixture import FOLDER, found_in

import cachekd
from cachekd.errors import CorruptCache, StoreError
from cachekd.store.io import Location
from cachekd.store.layout import VERSION, dump_document
from cachekd.store.manifest import read_manifest
from cachekd.store.verify import verify

VERSIONS = sorted(path.name for path in FOLDER.glob("cache-*") if path.is_dir())


def test_the_present_version_has_its_fixture() -> None:
    assert f"cache-{VERSION}" in VERSIONS
    size = sum(path.stat().st_size for path in (FOLDER / f"cache-{VERSION}").rglob("*.*"))
    assert 5_000 < size < 50_000


@pytest.mark.parametrize("name", VERSIONS)
def test_a_fixture_is_read_with_its_values(name: str, tmp_path: Path) -> None:
    """At every door, in the copy of a folder that tests may write to."""
    cache = Path(shutil.copytree(FOLDER / name, tmp_path / "cache"))
    facts = json.loads((FOLDER / f"{name}.json").read_text())
    assert verify(str(cache)).problems == ()
    opened = cachekd.open_cache(str(cache))
    assert opened.root == facts["root"] and len(opened) == len(facts["records"]) == 3
    for found, expected in zip(found_in(opened), facts["records"], strict=True):
        logprobs = found.pop("logprobs"), expected.pop("logprobs")
        np.testing.assert_allclose(*logprobs, atol=2e-4)
        assert found == expected
    truth = read_all(str(cache))
    assert all(door(str(cache)) == truth for door in DOORS.values())
    theirs = list(reference.Reader(cache).records())
    assert [record["key"].hex() for record in theirs] == [r["key"] for r in facts["records"]]


def test_a_newer_version_says_what_to_install(cache: Path) -> None:
    for name in ("cache.json", "manifest-1.json", "logits/capture.json"):
        whole = (cache / name).read_bytes()
        kind = json.loads(whole)["format"].removeprefix("cachekd-")
        put(cache / name, dump_document(kind, {**load(cache / name), "version": VERSION + 1}))
        with pytest.raises(StoreError, match="newer cachekd: pip install --upgrade cachekd") as e:
            cachekd.open_cache(str(cache))
        assert name in str(e.value) and not isinstance(e.value, CorruptCache)
        put(cache / name, whole)


Add = Callable[[dict[str, Any]], Any]


def optional(document: dict[str, Any]) -> None:
    document["later"] = {"any": ["thing"]}
    for facts in document.get("shards", {}).values():
        facts["later"] = 1
    for kind in document.get("kinds", {}).values():
        kind["later"] = 1
        for facts in kind["shards"]:
            facts["later"] = 1


def critical(document: dict[str, Any]) -> None:
    document.update(later=1, critical=["later"])


@pytest.mark.parametrize("kind", ["plan", "unit", "manifest"])
def test_an_unknown_field_is_left_alone_unless_it_is_critical(cache: Path, kind: str) -> None:
    truth = read_all(str(cache))
    whole = Path(shutil.copytree(cache, cache.with_name("whole")))
    forge(cache, **{kind: optional})
    for door in DOORS.values():
        assert door(str(cache)) == truth
    if kind != "manifest":  # a seal is made anew, other documents are copied as they are
        merge_to = cache.with_name("merged")
        from cachekd.store.merge import merge

        merge([str(cache)], str(merge_to))
        folder = f"{kind}s"
        kept = [load(path) for path in (merge_to / folder).iterdir()]
        assert {"any": ["thing"]} in [document.get("later") for document in kept]
    forge(whole, **{kind: critical})
    for door in OF_SEAL if kind == "manifest" else OF_STATE:
        with pytest.raises(StoreError, match=r"later.*newer cachekd: pip install --upgrade"):
            DOORS[door](str(whole))


@pytest.mark.parametrize("value", ["later", [1], {"later": 1}, None])
def test_a_list_of_critical_fields_that_is_none_is_refused(cache: Path, value: object) -> None:
    forge(cache, manifest=lambda document: document.update(critical=value))
    with pytest.raises(CorruptCache, match="critical is no list of names"):
        read_manifest(Location(str(cache)))


def test_an_empty_list_of_critical_fields_refuses_nothing(cache: Path) -> None:
    truth = read_all(str(cache))
    forge(cache, manifest=lambda document: document.update(critical=[]))
    assert read_all(str(cache)) == truth
