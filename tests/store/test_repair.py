"""Repair: only what is bad goes, what can come back does, and it may be killed at any point."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import DAMAGES, NOT_TRUSTED, contents, flip, flipped, put, snapshot
from mutations import kind_of, make_cache
from tiny import Ran

import cachekd
from cachekd.errors import CacheNotFound
from cachekd.store import disk
from cachekd.store.io import Location
from cachekd.store.layout import dump_document
from cachekd.store.locks import LOCKS
from cachekd.store.manifest import read_manifest
from cachekd.store.repair import repair
from cachekd.store.verify import verify

CHANGES = ("open_new", "write", "sync", "link", "rename", "unlink")
KINDS = {
    "attention", "card", "generated", "hint", "identity", "index", "logits", "plans", "priors",
    "samples", "seal", "units",
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def whole(root: Path) -> Path:
    """Two runs, with attention, written responses and priors. Read only."""
    return make_cache(root)


@pytest.fixture
def cache(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "cache"))


def of_kind(cache: Path, kind: str) -> list[str]:
    return [name for name in snapshot(cache) if kind_of(name) == kind]


def test_a_clean_cache_is_not_touched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, unlink = snapshot(cache), disk.unlink
    for name in CHANGES:
        monkeypatch.setattr(disk, name, lambda *args: pytest.fail("a file was changed"))
    # But the lock that keeps others out.
    monkeypatch.setattr(
        disk,
        "unlink",
        lambda name, folder: unlink(name, folder) if name.startswith(LOCKS) else pytest.fail(name),
    )
    report = repair(str(cache))
    assert (report.found, report.removed, report.rebuilt, report.lacking) == ((), (), (), ())
    assert not report.left and report.generation == 2 and snapshot(cache) == before


def test_every_kind_of_file_is_there(cache: Path) -> None:
    assert {kind_of(name) for name in snapshot(cache)} == KINDS


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", sorted(KINDS - {"identity"}))
def test_one_damaged_file(cache: Path, kind: str, damage: str) -> None:
    before, truth = snapshot(cache), contents(cache)
    name = of_kind(cache, kind)[-1]
    DAMAGES[damage](cache / name)
    report = repair(str(cache))
    after = snapshot(cache)
    assert not report.left
    if kind in ("seal", "hint", "card") or (kind == "index" and damage != "flipped"):
        assert not report.lacking
    if not report.lacking and kind != "generated":
        assert {n: after[n] for n in before if n in after} == {
            n: data for n, data in before.items() if n in after
        }
    good = {n for n in before if n != name and not n.startswith(("units/", "manifest", "READ"))}
    assert all(after[n] == before[n] for n in good), "a good file was touched"
    lost_units = {n for n in before if n.startswith("units/")} - after.keys()
    assert len(lost_units) == (kind in ("logits", "attention", "units"))
    if kind != "plans":
        assert not verify(str(cache)).problems
        assert {*contents(cache)} <= {*truth}
    again = repair(str(cache))
    assert snapshot(cache) == after and again.lacking == report.lacking


@pytest.mark.parametrize("damage", [*DAMAGES, "spaced"])
def test_a_damaged_seal_comes_back_with_equal_bytes(cache: Path, damage: str) -> None:
    before = snapshot(cache)
    victim = cache / "manifest-2.json"
    if damage == "spaced":
        put(victim, victim.read_bytes().replace(b"\n ", b"\n  ", 1))
    else:
        DAMAGES[damage](victim)
    assert verify(str(cache)).findings[0].file == "manifest-2.json"
    report = repair(str(cache))
    assert report.rebuilt and not report.lacking and snapshot(cache) == before


def test_an_older_seal_that_is_damaged_goes(cache: Path) -> None:
    before = snapshot(cache)
    flip(cache / "manifest-1.json")
    assert [problem.file for problem in verify(str(cache)).findings] == ["manifest-1.json"]
    assert repair(str(cache)).removed == ("manifest-1.json",)
    del before["manifest-1.json"]
    assert snapshot(cache) == before


@pytest.mark.parametrize("name", ["cache.json", "logits/capture.json", "attention/capture.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_an_identity_cannot_be_made_again(
    cachekd: Callable[..., Ran], cache: Path, name: str, damage: str
) -> None:
    DAMAGES[damage](cache / name)
    flip(next((cache / "logits").glob("*.parquet")))
    before = snapshot(cache)
    ran = cachekd("verify", cache, "--repair", "--json")
    assert ran.code == 4 and snapshot(cache) == before
    assert name in [problem["file"] for problem in ran.json["problems"]]
    assert "restore" in ran.json["next"] and name in ran.err


def test_an_identity_of_other_white_space_is_written_as_it_was(cache: Path) -> None:
    before = snapshot(cache)
    for name in ("cache.json", of_kind(cache, "units")[0]):
        put(cache / name, before[name].replace(b"\n ", b"\n  ", 1))
    assert verify(str(cache)).problems
    report = repair(str(cache))
    assert len(report.rebuilt) == 2 and not report.removed and snapshot(cache) == before


def test_what_is_out_of_reach_is_not_damaged(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk or a permission that fails now says nothing of the content: nothing is taken away."""
    before, map_whole = snapshot(cache), disk.map_whole

    def failing(file: int) -> Any:
        if os.readlink(f"/dev/fd/{file}").endswith(".parquet"):
            raise OSError(5, "Input/output error")
        return map_whole(file)

    monkeypatch.setattr(disk, "map_whole", failing)
    report = repair(str(cache))
    assert report.left and not report.removed and not report.rebuilt
    assert "Input/output error" in report.problems[0]
    monkeypatch.undo()
    assert snapshot(cache) == before


def test_a_seal_that_was_lost_is_known_by_its_hint(cache: Path) -> None:
    before = snapshot(cache)
    for name in ("manifest-1.json", "manifest-2.json"):
        (cache / name).unlink()
    assert [problem.file for problem in verify(str(cache)).findings] == ["manifest-2.json"]
    repair(str(cache))
    del before["manifest-1.json"]
    assert snapshot(cache) == before


def test_what_was_never_sealed_is_not_sealed(cache: Path) -> None:
    for path in [*cache.glob("manifest*"), *(cache / "index").iterdir()]:
        path.unlink()
    victim = next((cache / "logits").glob("*.parquet"))
    flip(victim)
    report = repair(str(cache))
    assert not victim.exists() and len(report.removed) == 2 and report.generation is None
    assert not list(cache.glob("manifest*"))
    assert not verify(str(cache), partial=True).problems
    with pytest.raises(CacheNotFound):
        repair(str(cache / "elsewhere"))


def test_a_damaged_record_and_seal_leave_the_rest(cache: Path) -> None:
    """Both at once: the seal comes back without the unit, and says so."""
    truth = contents(cache)
    unit = of_kind(cache, "units")[0]
    flip(cache / unit)
    flip(cache / "manifest-2.json")
    report = repair(str(cache))
    assert report.lacking == (unit,) and not verify(str(cache)).problems
    manifest = read_manifest(Location(str(cache)))
    assert manifest is not None and manifest.repaired == (unit,) and manifest.generation == 2
    assert {*contents(cache)} < {*truth}


@pytest.mark.parametrize(
    "victims", [("plans", "logits"), ("samples", "units"), ("priors", "index")]
)
def test_several_kinds_at_once(cache: Path, victims: tuple[str, str]) -> None:
    for kind in victims:
        flip(cache / of_kind(cache, kind)[0])
    first = repair(str(cache))
    assert first.lacking and not first.left
    after = snapshot(cache)
    assert repair(str(cache)).lacking == first.lacking and snapshot(cache) == after
    if "plans" not in victims:
        assert not verify(str(cache)).problems


@pytest.mark.parametrize("same", [True, False])
def test_a_plan_and_a_shard(cache: Path, same: bool) -> None:
    """The shard of the plan's only unit, or one of another plan's."""
    records = {name: json.loads((cache / name).read_text()) for name in of_kind(cache, "units")}
    lone = next(name for name in records if name.endswith("-0.json") and not _has_next(name, cache))
    other = next(name for name in records if _has_next(name, cache))
    plan = lone.removeprefix("units/").removesuffix("-0.json")
    digest = records[lone if same else other]["shards"]["logits"]["digest"]
    shard = f"logits/{digest}.parquet"
    for victim in (f"plans/{plan}.json", shard):
        flip(cache / victim)
    first = repair(str(cache))
    assert first.lacking and not first.left
    after = snapshot(cache)
    assert repair(str(cache)).lacking == first.lacking and snapshot(cache) == after
    assert (verify(str(cache)).problems == ()) == same


def _has_next(name: str, cache: Path) -> bool:
    return (cache / name.replace("-0.json", "-1.json")).exists()


def test_a_forged_seal_is_written_anew(cache: Path) -> None:
    before = snapshot(cache)
    document = json.loads(before["manifest-2.json"])
    document["totals"]["samples"] += 1
    for name in ("format", "version", "checksum"):
        del document[name]
    put(cache / "manifest-2.json", dump_document("manifest", document))
    assert verify(str(cache)).problems
    repair(str(cache))
    assert snapshot(cache) == before


def test_it_works_on_other_filesystems(cache: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(cache), "/repaired", recursive=True)
    name = of_kind(cache, "logits")[0]
    data = memory.cat_file(f"/repaired/{name}")
    memory.pipe_file(f"/repaired/{name}", flipped(data))
    report = repair("memory://repaired")
    assert len(report.lacking) == 1 and name in report.removed
    assert not verify("memory://repaired").problems
    assert len(cachekd.open_cache("memory://repaired")) < len(cachekd.open_cache(str(cache)))
    memory.rm("/repaired", recursive=True)


def test_the_card_tells_nothing_that_is_trusted(cache: Path) -> None:
    for name in NOT_TRUSTED:
        before = snapshot(cache)
        flip(cache / name)
        assert not verify(str(cache)).problems
        assert repair(str(cache)).rebuilt == (name,) and snapshot(cache) == before
