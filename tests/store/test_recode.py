"""Recoding: other shards, smaller, with the same records to the last bit, kill by kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ragged import assert_same
from tiny import Family, Ran, chat_rows, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.errors import ConfigError, CorruptCache, MismatchError
from cachekd.store.io import Location
from cachekd.store.layout import dump_document
from cachekd.store.recode import recode
from cachekd.store.state import read_state
from cachekd.store.verify import verify

Maker = Callable[..., dict[str, Any]]
ROWS = chat_rows(90)


def assert_same_records(left: Path, right: Path) -> None:
    mine, theirs = cachekd.open_cache(str(left)), cachekd.open_cache(str(right))
    assert mine.sample_ids == theirs.sample_ids and len(mine) >= 10
    assert mine.identity == theirs.identity
    for a, b in zip(mine, theirs, strict=True):
        assert a.key == b.key and a.input_ids.tolist() == b.input_ids.tolist()
        assert a.roles.tolist() == b.roles.tolist() and a.domain == b.domain
        assert_same(a.logits, b.logits)


@pytest.mark.parametrize(
    ("values", "codec", "further"),
    [
        ("float16", "plain", {"logits_top_k": 64}),
        ("float32", "packed", {"logits_selection": "full", "temperatures": (1.0, 0.5, 3.0)}),
        ("sqrt", "packed", {"logits_top_k": 64}),
        ("sqrt", "packed", {"logits_top_k": 40, "logits_step": 1 / 240}),
        ("log", "packed", {"logits_selection": "top_k", "logits_top_k": 64}),
    ],
)
def test_values_stay(
    make_cache: Maker, tmp_path: Path, values: str, codec: str, further: dict[str, Any]
) -> None:
    settings = {"logits_values": values, "codec": codec, "unit_tokens": 1000, **further}
    source, target = tmp_path / "source", tmp_path / "target"
    make_cache(source, ROWS[:45], **settings)
    make_cache(source, ROWS, **settings)
    made = recode([str(source)], str(target))
    # The dummy teacher's rows have nothing in common that a prior could learn.
    assert codec == "packed" or made.bytes_after < 0.9 * made.bytes_before
    assert made.bytes_before >= cachekd.open_cache(str(source)).totals["bytes"]
    assert_same_records(source, target)
    assert not verify(str(target)).problems
    before, after = (read_state(Location(str(path))) for path in (source, target))
    assert before.plans == after.plans and before.units.keys() == after.units.keys()
    assert len(after.units) > 2 and len(after.priors()) == 1
    for unit, record in after.units.items():
        assert record.numerics == {**before.units[unit].numerics, "recoded": True}
    assert recode([str(source)], str(target)).manifest == made.manifest, "nothing is done twice"


def test_bytes_shrink(family: Family, tmp_path: Path) -> None:
    """A capture whose first documents are of another kind than the rest."""
    source, target = tmp_path / "source", tmp_path / "target"
    data = write_rows(tmp_path / "data.jsonl", ROWS)
    cachekd.precompute(
        PrecomputeConfig(
            teacher=str(family.teacher), data=(str(data),), cache=str(source), threads=1,
            logits_values="sqrt", unit_tokens=1000, batch_tokens=1000, sort_window=1,
        )
    )  # fmt: skip
    made = recode([str(source)], str(target))
    assert made.manifest.totals["targets"] > 3000
    assert made.bytes_after < made.bytes_before
    assert_same_records(source, target)


def test_several_sources_are_one(make_cache: Maker, tmp_path: Path) -> None:
    left, right, both, target = (tmp_path / name for name in ("a", "b", "both", "out"))
    make_cache(left, ROWS[:30])
    make_cache(right, ROWS[20:50], codec="plain")
    make_cache(both, ROWS[:50])
    made = recode([str(left), str(right), str(left)], str(target))
    mine, theirs = cachekd.open_cache(str(target)), cachekd.open_cache(str(both))
    assert set(mine.sample_ids) == set(theirs.sample_ids) and len(mine) == 50
    assert made.manifest.totals["keys"] == 50 and not verify(str(target)).problems
    for record in theirs:
        assert_same(mine.get(record.input_ids).logits, record.logits)


def test_a_killed_recode_leaves_nothing_wrong_and_goes_on(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recode([str(cache)], str(tmp_path / "whole"))
    create, left = Location.create, 0

    def dies(self: Location, name: str, data: Any) -> bool:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return create(self, name, data)

    monkeypatch.setattr(Location, "create", dies)
    target, runs = tmp_path / "out", 0
    for allowed in range(1, 60):
        left, runs = allowed, runs + 1
        try:
            made = recode([str(cache)], str(target))
            break
        except KeyboardInterrupt:
            if (target / "logits" / "capture.json").exists():
                assert not verify(str(target), partial=True).problems
    assert runs > 3 and made.manifest.root == whole.manifest.root
    assert_same_records(cache, target)


def test_other_targets_and_damaged_sources_are_refused(
    make_cache: Maker, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="expected a target without units of its own"):
        recode([str(cache)], str(cache))
    other = tmp_path / "other"
    make_cache(other, ROWS[:3], logits_top_k=9)
    with pytest.raises(MismatchError):
        recode([str(cache)], str(other))
    shard = sorted((cache / "logits").glob("*.parquet"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptCache, match=shard.name):
        recode([str(cache)], str(tmp_path / "out"))
    assert not list((tmp_path / "out").glob("manifest-*"))


def test_the_command(cachekd: Callable[..., Ran], sealed: Path, tmp_path: Path) -> None:
    ran = cachekd("merge", sealed, "--recode", "--out", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    summary = json.loads(ran.out)
    assert summary["samples"] == 10 and summary["generation"] == 1
    assert min(summary["bytes_after"], summary["bytes_before"]) > 0
    assert cachekd("merge", sealed, "--recode", "--out", sealed).code == 2
    assert "--recode" in cachekd("merge", "--help").out


def test_a_seal_that_names_other_priors_is_a_problem(cache: Path) -> None:
    path = cache / "manifest-1.json"
    document = json.loads(path.read_text())
    assert document["priors"] and not verify(str(cache)).problems
    path.write_bytes(dump_document("manifest", {**document, "priors": {}}))
    assert any("the field priors" in problem for problem in verify(str(cache)).problems)
