"""Digests of an import: counted like a `Counter` does, in any order of adding."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from exchanging import brought_in, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Family

from cachekd import open_cache
from cachekd.data.packed import Keys
from cachekd.errors import DataError
from cachekd.exchange import _gathered, _store
from cachekd.exchange._seen import Seen
from cachekd.store.io import Location
from cachekd.store.state import read_state
from cachekd.store.verify import verify

# Few different digests, some with zeros at the end, which numpy drops from single elements.
DIGESTS = st.sampled_from([bytes([i % 3, i]) + bytes(14) for i in range(12)] + [b"z" * 16])


@settings(max_examples=100, deadline=None)
@given(st.lists(DIGESTS), st.lists(st.lists(DIGESTS, max_size=9), max_size=12))
def test_counts(first: list[bytes], parts: list[list[bytes]]) -> None:
    seen, expected = Seen(first), Counter(first)
    asked = [bytes([i % 3, i]) + bytes(14) for i in range(13)] + [b"z" * 16]
    for part in parts:
        seen.add(Keys.of(part))
        expected.update(part)
        assert seen.counts(Keys.of(asked)).tolist() == [expected[key] for key in asked]


def test_runs_stay_few() -> None:
    seen = Seen()
    rng = np.random.default_rng(0)
    for _ in range(300):
        seen.add(Keys(np.frombuffer(rng.bytes(16 * 10), "S16")))
    assert sum(map(len, seen._runs)) == 3000 and len(seen._runs) <= 12


@pytest.mark.parametrize("unit_tokens", [4, 1000])
def test_equal_samples_are_numbered_and_equal_texts_keep_the_fullest(
    unit_tokens: int, family: Family, tmp_path: Path
) -> None:
    """In one commit or in many; and a second time, when all of them are held."""
    row = {
        "input_ids": [7, 8, 9],
        "target_token_ids": [[8, 3], [9, 4], [0, 1]],
        "target_logprobs": [[-0.5, -2.0]] * 3,
    }
    other = {**row, "input_ids": [7, 8, 10]}
    masked = {**other, "labels": [-100, -100, 10], "target_mask": [[0, 0], [1, 1], [0, 0]]}
    path = write_lines(tmp_path / "a.jsonl", [row, row, masked, other, row])
    further = {"format": "axolotl", "unit_tokens": unit_tokens}
    report = brought_in(path, family, tmp_path / "in", **further)
    assert report["new_samples"] == 5 and report["samples"] == 5
    cache = open_cache(str(tmp_path / "in"))
    assert len({record.sample_id for record in cache}) == 5
    assert len({record.key for record in cache}) == 2
    again = brought_in(path, family, tmp_path / "in", **further)
    assert "new_samples" not in again and again["root"] == report["root"]
    if unit_tokens == 1000:  # of what came together, the fullest is kept
        assert np.diff(cache.get(np.array([7, 8, 10], np.int32)).logits.offsets).tolist() == [2, 2]


@pytest.mark.parametrize("unit_tokens", [4, 1000])
def test_equal_texts_that_train_on_other_rows(
    unit_tokens: int, family: Family, tmp_path: Path
) -> None:
    """In one commit or in many: what the record lacks is told or left out, and the cache opens."""
    row = {
        "input_ids": [7, 8, 9, 10],
        "target_token_ids": [[8, 3], [9, 4], [10, 1], [0, 1]],
        "target_logprobs": [[-0.5, -2.0]] * 4,
    }
    other = {**row, "input_ids": [7, 8, 9, 11], "labels": [-100, -100, -100, 11]}
    other["target_mask"] = [[0, 0], [0, 0], [1, 1], [0, 0]]
    late = {**row, "labels": [-100, -100, 9, 10]}
    early = {**row, "labels": [-100, -100, -100, 10]}
    early["target_mask"] = [[0, 0], [0, 0], [1, 1], [0, 0]]
    if unit_tokens == 1000:  # of one commit the fullest is kept: neither holds the other's rows
        late |= {"labels": [-100, 8, 9, -100], "target_mask": [[1, 1], [1, 1], [0, 0], [0, 0]]}
    path = write_lines(tmp_path / "a.jsonl", [other, early, late, early])
    settings = {"format": "axolotl", "unit_tokens": unit_tokens}
    with pytest.raises(DataError, match="trains on rows that the targets of the same token ids"):
        brought_in(path, family, tmp_path / "strict", **settings)
    for _ in range(2):
        report = brought_in(path, family, tmp_path / "in", on_bad="skip", **settings)
        assert sum(report["documents_left_out"].values()) == (2 if unit_tokens == 1000 else 1)
        assert len(list(open_cache(str(tmp_path / "in")))) == report["samples"]
    plans = read_state(Location(str(tmp_path / "in"))).plans.values()
    skipped = [count for plan in plans for count in plan.skipped.values()]
    assert sum(skipped) == sum(report["documents_left_out"].values())


def test_a_bad_last_line_is_in_a_plan_once(family: Family, tmp_path: Path) -> None:
    row = {"input_ids": [7, 8, 9], "target_token_ids": [[8], [9]], "target_logprobs": [[-0.5]] * 2}
    path = write_lines(tmp_path / "a.jsonl", [row, row, "{"])
    for _ in range(2):
        settings = {"format": "axolotl", "on_bad": "skip", "unit_tokens": 4}
        report = brought_in(path, family, tmp_path / "in", **settings)
        assert sum(report["documents_left_out"].values()) == 1
        plans = read_state(Location(str(tmp_path / "in"))).plans.values()
        assert sum(count for plan in plans for count in plan.skipped.values()) == 1
    assert not verify(str(tmp_path / "in")).findings


@pytest.mark.slow
def test_many_commits_share_few_plans_and_survive_a_stop(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at any place and continued, the same command ends in the same cache."""
    targets = {"target_token_ids": [[8], [9]], "target_logprobs": [[-0.5]] * 2}
    rows = [{"input_ids": [7, i // 16, 20 + i % 16], **targets} for i in range(24)]
    monkeypatch.setattr(_gathered, "_SHARE", 3)
    path = write_lines(tmp_path / "a.jsonl", rows)
    settings = {"format": "axolotl", "unit_tokens": 1, "shift": 0}
    whole = brought_in(path, family, tmp_path / "whole", **settings)
    plans = list((tmp_path / "whole" / "plans").iterdir())
    assert whole["shards"] == 24 and len(plans) < 3 + 3 * math.log(24 / 3) + 2
    assert len(list((tmp_path / "whole" / "samples").iterdir())) == len(plans)
    assert not verify(str(tmp_path / "whole")).findings
    made = _store.write_shard

    def stopped(*arguments: object) -> object:
        left.pop()
        return made(*arguments)

    for most in (1, 9, 30):
        left = [0] * most
        monkeypatch.setattr(_store, "write_shard", stopped)
        with contextlib.suppress(IndexError):
            brought_in(path, family, tmp_path / "in", **settings)
    report = brought_in(path, family, tmp_path / "in", **settings)
    assert report["root"] == whole["root"] and "new_documents" not in report
    done = read_state(Location(str(tmp_path / "in")))
    assert sum(map(len, (plan.keys for plan in done.plans.values()))) == 24
