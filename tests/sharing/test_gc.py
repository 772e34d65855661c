"""gc: small shards united, what nothing needs taken away, and nothing lost wherever it stops."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import ran
from tiny import Ran

import cachekd
from cachekd.config import GcConfig
from cachekd.store.gc import collect
from cachekd.store.io import Location
from cachekd.store.verify import verify

from .conftest import Maker, rows_of


def clean(cache: Path, **further: Any) -> dict[str, Any]:
    return collect(GcConfig(cache=str(cache), **{"yes": True, **further}))


def age(cache: Path, hours: float) -> None:
    """Make every file older."""
    then = time.time() - 3600 * hours
    for path in cache.rglob("*"):
        os.utime(path, (then, then))


def same_records(left: Path, right: Path) -> None:
    one, other = cachekd.open_cache(str(left)), cachekd.open_cache(str(right))
    assert sorted(one.sample_ids) == sorted(other.sample_ids)
    places = {sample: i for i, sample in enumerate(other.sample_ids)}
    for i, sample in enumerate(one.sample_ids):
        mine, theirs = one[i], other[places[sample]]
        np.testing.assert_array_equal(mine.input_ids, theirs.input_ids)
        np.testing.assert_array_equal(mine.logits.ids, theirs.logits.ids)
        np.testing.assert_array_equal(mine.logits.logprobs, theirs.logits.logprobs)
        np.testing.assert_array_equal(mine.logits.tail, theirs.logits.tail)
        assert mine.domain == theirs.domain
        if mine.attention is not None:
            np.testing.assert_array_equal(mine.attention.probs, theirs.attention.probs)


def test_small_shards_become_few(cache: Path, shared: Path) -> None:
    done = clean(cache, compact=True)
    assert done["shards_before"] > 3 and done["shards_after"] <= 2
    assert not verify(str(cache)).problems
    same_records(cache, shared)
    assert clean(cache, compact=True)["shards_after"] == done["shards_after"]
    manifest = cachekd.open_cache(str(cache)).manifest
    assert manifest is not None and manifest.repaired == (), "records were united, none was lost"


def test_shards_of_several_runs_are_united(cache: Path, make_cache: Maker, tmp_path: Path) -> None:
    more = rows_of(14)
    make_cache(cache, more, domain_column="domain", sort_window=1)
    before = Path(shutil.copytree(cache, tmp_path / "before"))
    clean(cache, compact=True)
    same_records(cache, before)
    again = make_cache(cache, more, domain_column="domain", sort_window=1)
    assert again["keys"] == 14 and "tokens_per_second" not in again, "nothing is scored again"
    assert not verify(str(cache)).problems


def test_attention_is_united_with_its_logits(attentive: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(attentive, tmp_path / "cache"))
    assert clean(cache, compact=True)["shards_after"] == 1
    assert not verify(str(cache)).problems
    same_records(cache, attentive)


def test_a_target_size_bounds_the_shards(cache: Path) -> None:
    sizes = [facts.bytes for facts in cachekd.open_cache(str(cache)).manifest.shards.values()]  # type: ignore[union-attr]
    done = clean(cache, compact=True, target_size=f"{3 * max(sizes)}B")
    assert 1 < done["shards_after"] < done["shards_before"]


def test_without_yes_nothing_changes(cache: Path) -> None:
    (cache / "logits" / f"{'0' * 64}.parquet").write_bytes(b"left over")
    age(cache, 48)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    told = clean(cache, compact=True, yes=False)
    assert told["dry_run"] and told["files"] == 1 and told["shards_after"] < told["shards_before"]
    after = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    assert after == before


def test_young_files_and_files_of_an_older_reader_stay(cache: Path, shared: Path) -> None:
    reader = cachekd.open_cache(str(cache))
    done = clean(cache, compact=True)
    assert done["files"] == 0 and done["files_spared"] == 0, "the seal before is younger than that"
    assert len(list(reader)) == 12, "a reader of the seal before goes on"
    age(cache, 48)
    later = clean(cache)
    assert later["files"] >= done["shards_before"]
    assert not (cache / "manifest-1.json").exists()
    assert not verify(str(cache)).problems
    same_records(cache, shared)


def test_what_a_writer_is_about_to_name_stays(cache: Path) -> None:
    young, old = (cache / "logits" / f"{digit * 64}.parquet" for digit in "01")
    for path in (young, old):
        path.write_bytes(b"not named yet")
    os.utime(old, (1, 1))
    done = clean(cache)
    assert (done["files"], done["files_spared"]) == (1, 1)
    assert young.exists() and not old.exists()


def _stops(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, pytest.MonkeyPatch]]:
    """Contexts in which the first, the second, ... change of a file is not made any more."""
    for allowed in range(80):
        with monkeypatch.context() as patch:
            left = [allowed]

            def counted(name: str, left: list[int]) -> Callable[..., Any]:
                real = getattr(Location, name)

                def act(*args: Any) -> Any:
                    if not left[0]:
                        raise KeyboardInterrupt
                    left[0] -= 1
                    return real(*args)

                return act

            for name in ("create", "replace", "remove"):
                patch.setattr(Location, name, counted(name, left))
            yield allowed, patch


@pytest.mark.slow
def test_stopped_anywhere_it_opens_as_before_or_after(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for allowed, _ in _stops(monkeypatch):
        cache = Path(shutil.copytree(shared, tmp_path / f"stopped-{allowed}"))
        age(cache, 48)
        try:
            clean(cache, compact=True, older_than=0.0)
        except KeyboardInterrupt:
            stopped = True
        else:
            stopped = False
        same_records(cache, shared)
        assert not verify(str(cache)).problems
        if not stopped:
            break
    assert allowed > 10


@pytest.mark.reliability
def test_killed_at_some_changes_of_the_disk() -> None:
    """By the system; records are equal before and after, and the same command ends the work."""
    found = ran("share_kills.py", "gc", "--step", 7)
    assert found["done"] == -(-found["changes"] // 7) > 7


def test_a_cache_that_is_written_is_left_alone(cache: Path, cachekd: Callable[..., Ran]) -> None:
    code = (
        "import sys; from cachekd.store.claims import Claims; "
        "from cachekd.store.io import Location; "
        "claims = Claims(Location(sys.argv[1]), 'run'); claims.take(0); print('have'); "
        "sys.stdout.flush(); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(cache)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline()
        ran = cachekd("gc", cache, "--yes")
        writer.kill()
    assert ran.code == 1
    assert "another process writes this cache" in ran.err


def test_the_command_tells_that_nothing_was_changed(
    cache: Path, cachekd: Callable[..., Ran]
) -> None:
    ran = cachekd("gc", cache, "--json")
    assert ran.code == 0 and ran.json["dry_run"] and "--yes" in ran.err
    assert cachekd("gc", cache, "--target-size", "many").code == 2
