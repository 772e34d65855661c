"""Repair that is killed, or meets a full disk, at any operation: it ends as a calm one does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import flip, snapshot
from mutations import kind_of, make_cache

from cachekd.errors import StoreError
from cachekd.store import disk
from cachekd.store.repair import repair

CHANGES = ("open_new", "write", "sync", "link", "rename", "unlink")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return make_cache(tmp_path)


def damage_many(cache: Path) -> None:
    """A shard, a record and responses are bad, and so is the newest seal."""
    names = {
        kind: [n for n in snapshot(cache) if kind_of(n) == kind] for kind in ("units", "generated")
    }
    records = names["units"]
    shard = json.loads((cache / records[0]).read_bytes())["shards"]["logits"]["digest"]
    others = [names["generated"][0], "manifest.json", "manifest-2.json"]
    for name in (f"logits/{shard}.parquet", records[-1], *others):
        flip(cache / name)


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From operation ``number`` that changes the disk on, none is done."""
    done = [0]

    def tripped(name: str) -> Callable[..., Any]:
        original = getattr(disk, name)

        def act(*args: Any) -> Any:
            done[0] += 1
            if done[0] >= number:
                raise Killed
            return original(*args)

        return act

    for name in CHANGES:
        monkeypatch.setattr(disk, name, tripped(name))


@pytest.mark.parametrize(
    "stride", [8, pytest.param(1, marks=pytest.mark.reliability, id="every operation")]
)
def test_killed_anywhere_it_ends_the_same(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    damage_many(cache)
    calm = Path(shutil.copytree(cache, tmp_path / "calm"))
    report = repair(str(calm))
    assert len(report.removed) >= 4 and "manifest-2.json" in report.rebuilt
    end, number = snapshot(calm), 1
    while True:
        place = Path(shutil.copytree(cache, tmp_path / f"killed-{number}"))
        with monkeypatch.context() as patch:
            kill_at(number, patch)
            try:
                repair(str(place))
            except Killed:
                pass
            else:
                break
        again = repair(str(place))
        left = {n: d for n, d in snapshot(place).items() if "/.tmp-" not in f"/{n}"}
        assert left == end, f"killed at operation {number}"
        assert again.lacking == report.lacking
        shutil.rmtree(place)
        number += stride
    assert number > 40, "there were as many points to kill it at"


def test_a_disk_that_fails_loses_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage_many(cache)
    before = snapshot(cache)

    def full(file: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write", full)
        with pytest.raises(StoreError, match="No space left"):
            repair(str(cache))
    assert snapshot(cache) == before
