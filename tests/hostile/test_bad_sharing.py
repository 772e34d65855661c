"""Sharing what is no cache, half of one, altered, another's, or too large for the disk."""

from __future__ import annotations

import base64
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Family, Ran, chat_rows, write_rows

import cachekd as package
from cachekd.errors import StoreError
from cachekd.sharing.catalogue import CATALOGUE
from cachekd.store import disk
from cachekd.store.io import Location
from cachekd.store.layout import dump_document
from cachekd.store.manifest import read_manifest

Run = Callable[..., Ran]


def nothing_at(path: Path) -> None:
    """No cache is to be seen there."""
    with pytest.raises(StoreError):
        package.open_cache(str(path))
    assert not list(path.glob("manifest*.json"))


def rewritten(cache: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The seal of a cache with another content and a checksum that fits."""
    path = cache / "manifest-1.json"
    content = json.loads(path.read_text())
    for name in ("format", "version", "checksum"):
        del content[name]
    change(content)
    path.write_bytes(dump_document("manifest", content))


def test_what_is_no_cache_is_not_pulled(cachekd: Run, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for source in ("nowhere", "folder"):
        ran = cachekd("pull", tmp_path / source, tmp_path / "mine")
        assert ran.code == 1 and "no cache at" in ran.err and "Traceback" not in ran.err
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("command", ["pull", "push"])
def test_an_unsealed_cache_is_not_shared(
    cachekd: Run, cache: Path, tmp_path: Path, command: str
) -> None:
    (cache / "manifest-1.json").unlink()
    (cache / "manifest.json").unlink()
    ran = cachekd(command, cache, tmp_path / "there")
    assert ran.code == 1 and "is not sealed" in ran.err and "cachekd seal" in ran.err
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("name", ["../../outside.json", "/etc/passwd", "units/../../x.json"])
def test_a_seal_that_names_files_outside_is_refused(
    cachekd: Run, cache: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "in" / "outside.json").write_text("{}")
    rewritten(cache, lambda content: content["files"].update({name: "0" * 64}))
    ran = cachekd("pull", cache, tmp_path / "mine")
    assert ran.code == 4 and "is no seal" in ran.err
    assert not (tmp_path / "mine").exists()


def test_a_seal_that_names_no_digest_is_refused(cachekd: Run, cache: Path, tmp_path: Path) -> None:
    rewritten(cache, lambda content: content.update(samples=["../../etc/passwd"]))
    ran = cachekd("pull", cache, tmp_path / "mine")
    assert ran.code == 4 and not (tmp_path / "mine").exists()


@pytest.mark.parametrize("folder", ["logits", "samples", "units", "plans"])
@pytest.mark.parametrize("command", ["pull", "push"])
def test_altered_bytes_are_refused_and_named(
    cachekd: Run, cache: Path, tmp_path: Path, folder: str, command: str
) -> None:
    victim = max((cache / folder).glob("*-1.json" if folder == "units" else "*[0-9a-f].*"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(data)
    ran = cachekd(command, cache, tmp_path / "there")
    assert ran.code == 4 and victim.name in ran.err, ran.err
    nothing_at(tmp_path / "there")
    assert not (tmp_path / "there" / folder / victim.name).exists()


def test_a_shard_that_is_missing_at_the_source_is_named(
    cachekd: Run, cache: Path, tmp_path: Path
) -> None:
    victim = min((cache / "logits").glob("*.parquet"))
    victim.unlink()
    ran = cachekd("pull", cache, tmp_path / "mine")
    assert ran.code == 4 and victim.name in ran.err and "is missing" in ran.err
    nothing_at(tmp_path / "mine")


def test_a_disk_that_is_too_small_is_found_before(
    cachekd: Run, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Location, "free_bytes", lambda self: 1000)
    ran = cachekd("pull", cache, tmp_path / "mine")
    assert ran.code == 1 and "0.000 GB free" in ran.err and "--fraction" in ran.err
    assert not (tmp_path / "mine" / "logits").exists()


def test_a_disk_that_gets_full_leaves_no_cache(
    cachekd: Run, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = disk.write, [12]

    def full(file: int, data: memoryview) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write", full)
        ran = cachekd("pull", cache, tmp_path / "mine", "--jobs", 2)
    assert ran.code == 1 and "No space left" in ran.err
    nothing_at(tmp_path / "mine")
    assert not list((tmp_path / "mine").rglob(".tmp-*"))
    assert cachekd("pull", cache, tmp_path / "mine").code == 0
    assert cachekd("verify", tmp_path / "mine").code == 0


def test_data_that_matches_nothing_is_told(
    cachekd: Run, cache: Path, family: Family, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "other.jsonl", chat_rows(2, first=500))
    ran = cachekd(
        "pull", cache, tmp_path / "mine", "--keys-from", data, "--tokenizer", family.teacher
    )
    assert ran.code == 1 and "holds none of the 2 records" in ran.err and "--on-long" in ran.err
    ran = cachekd("pull", cache, tmp_path / "mine", "--domain", "law")
    assert ran.code == 1 and "has no samples of 'law'" in ran.err
    assert not (tmp_path / "mine").exists()


def test_the_tokenizer_must_be_the_caches(
    cachekd: Run, cache: Path, copy_of: Callable[[Path, str], Path], family: Family, tmp_path: Path
) -> None:
    other = copy_of(family.teacher, "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"<|end|>"', '"<|END|>"'))
    data = write_rows(tmp_path / "data.jsonl", chat_rows(2))
    flags = ("--keys-from", data, "--tokenizer")
    ran = cachekd("pull", cache, tmp_path / "mine", *flags, other)
    assert ran.code == 5 and "tokenizer" in ran.err
    ran = cachekd("pull", cache, tmp_path / "mine", *flags, tmp_path / "none")
    assert ran.code == 1 and "--tokenizer" in ran.err


@pytest.mark.parametrize("value", ["0", "1.5", "-1"])
def test_a_fraction_that_is_none_is_refused(
    cachekd: Run, cache: Path, tmp_path: Path, value: str
) -> None:
    ran = cachekd("pull", cache, tmp_path / "mine", "--fraction", value)
    assert ran.code == 2 and "fraction" in ran.err
    assert cachekd("pull", cache, tmp_path / "mine", "--jobs", 0).code == 2


def test_damaged_entries_of_a_catalogue_are_told_and_left(
    cachekd: Run, cache: Path, tmp_path: Path
) -> None:
    team = tmp_path / "team"
    assert cachekd("push", cache, team / "news").code == 0
    (good,) = (team / CATALOGUE).glob("*.json")
    content = json.loads(good.read_text())
    for name in ("format", "version", "checksum"):
        del content[name]
    outside = {**content, "folder": "../in/cache", "generation": 9}
    (team / CATALOGUE / "aa.json").write_text("{")
    (team / CATALOGUE / "bb.json").write_bytes(dump_document("catalogue", outside))
    (team / CATALOGUE / "cc.json").write_bytes(dump_document("catalogue", {"folder": "x"}))
    packed = {**content, "sketch": base64.b64encode(b"odd").decode()}
    (team / CATALOGUE / "dd.json").write_bytes(dump_document("catalogue", packed))
    (team / "broken").mkdir()
    (team / "broken" / "cache.json").write_text("{}")
    (team / "broken" / "manifest-1.json").write_text("{}")
    (team / "broken" / "logits").mkdir()
    (team / "broken" / "logits" / "capture.json").write_text("{}")
    ran = cachekd("ls", team, "--json")
    assert ran.code == 0, ran.err
    assert [one["cache"] for one in ran.json["caches"]] == ["news"]
    assert len(ran.json["left_out"]) == 5
    for name in ("aa.json", "bb.json", "cc.json", "dd.json", "broken"):
        assert any(name in problem for problem in ran.json["left_out"]), name


def test_an_entry_that_tells_another_seal_is_not_believed(
    cachekd: Run, cache: Path, tmp_path: Path
) -> None:
    team = tmp_path / "team"
    cachekd("push", cache, team / "news")
    (entry,) = (team / CATALOGUE).glob("*.json")
    content = json.loads(entry.read_text())
    for name in ("format", "version", "checksum"):
        del content[name]
    lie = {**content, "generation": 7, "root": "0" * 32}
    entry.write_bytes(dump_document("catalogue", lie))
    (found,) = cachekd("ls", team, "--json").json["caches"]
    sealed = read_manifest(Location(str(cache)))
    assert sealed is not None and found["root"] == sealed.root
