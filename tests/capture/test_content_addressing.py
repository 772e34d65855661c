"""A record is found by its tokens: batch size, order, additions and halves change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.capture import Progress
from cachekd.types import TopKLogits


def config(family: Family, data: Path, cache: Path, **further: object) -> PrecomputeConfig:
    settings = {"logits_values": "float32", "logits_top_p": 1.0, "logits_top_k": 32, "threads": 1}
    return PrecomputeConfig(
        teacher=str(family.teacher), data=(str(data),), cache=str(cache), **{**settings, **further}
    )


def largest_difference(left: TopKLogits, right: TopKLogits) -> float:
    """Of all values, with entries compared by token id: ties may change places."""
    assert left.rows == right.rows
    worst = 0.0
    for t in range(left.rows):
        a, b = (
            dict(
                zip(
                    x.ids[x.offsets[t] : x.offsets[t + 1]].tolist(),
                    x.logprobs[x.offsets[t] : x.offsets[t + 1]].tolist(),
                    strict=True,
                )
            )
            for x in (left, right)
        )
        common = a.keys() & b.keys()
        assert len(common) >= len(a) - 1
        worst = max(worst, *(abs(a[i] - b[i]) for i in common))
    for name in ("tail", "next_logprob", "entropy"):
        worst = max(worst, float(np.abs(getattr(left, name) - getattr(right, name)).max()))
    return worst


def test_batch_1_unsorted_equals_batch_8_sorted(family: Family, data: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    sorted_ = tmp_path / "sorted"
    cachekd.precompute(config(family, data, alone, batch_tokens=1, sort_window=1))
    cachekd.precompute(config(family, data, sorted_, batch_tokens=8 * 40, sort_window=1000))
    left, right = cachekd.open_cache(str(alone)), cachekd.open_cache(str(sorted_))
    assert left.sample_ids == right.sample_ids
    assert left.identity.capture_id == right.identity.capture_id
    worst = max(
        largest_difference(left.get(record.input_ids).logits, record.logits) for record in right
    )
    # The noise of float32 over batch shapes; benchmarks/bench_noise.py measures the teacher's own.
    assert worst < 2e-5


def test_more_data_scores_the_new_documents_only(
    family: Family, data: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    cachekd.precompute(config(family, data, cache))
    before = cachekd.open_cache(str(cache))
    more = write_rows(tmp_path / "more.jsonl", chat_rows(40))
    steps: list[Progress] = []
    report = cachekd.precompute(config(family, more, cache), progress=steps.append)
    after = cachekd.open_cache(str(cache))
    new_tokens = int(after.lengths.sum()) - int(before.lengths.sum())
    assert report["documents_to_score"] == 10
    assert report["documents_cached"] == 30
    assert steps[-1].tokens_done == steps[-1].tokens_total == new_tokens
    assert after.sample_ids[:30] == before.sample_ids
    assert len(after) == 40
    again = cachekd.precompute(config(family, more, cache))
    assert again["documents_to_score"] == 0 and again["new_samples"] == 0
    assert again["root"] == report["root"]


def test_equal_rows_are_samples_of_their_own_but_one_record(family: Family, tmp_path: Path) -> None:
    rows = chat_rows(3)
    data = write_rows(tmp_path / "twice.jsonl", [*rows, *rows])
    report = cachekd.precompute(config(family, data, tmp_path / "cache"))
    cache = cachekd.open_cache(str(tmp_path / "cache"))
    assert len(cache) == 6 and report["keys"] == 3
    assert cache[0].key == cache[3].key and cache[0].sample_id != cache[3].sample_id


def test_two_halves_united_hold_the_same_records(
    family: Family, data: Path, tmp_path: Path
) -> None:
    from cachekd.store.merge import merge

    rows = chat_rows(30)
    one = {"batch_tokens": 1}  # each document alone, so that the numbers are the same bits
    for name, part in (("first", rows[:15]), ("second", rows[12:])):
        file = write_rows(tmp_path / f"{name}.jsonl", part)
        cachekd.precompute(config(family, file, tmp_path / name, **one))
    cachekd.precompute(config(family, data, tmp_path / "whole", **one))
    merged = merge([str(tmp_path / "first"), str(tmp_path / "second")], str(tmp_path / "both"))
    assert merged.totals["samples"] == 30
    whole, both = (cachekd.open_cache(str(tmp_path / name)) for name in ("whole", "both"))
    assert set(whole.sample_ids) == set(both.sample_ids)
    for record in whole:
        other = both.get(record.input_ids).logits
        assert np.array_equal(other.ids, record.logits.ids)
        assert np.array_equal(other.logprobs, record.logits.logprobs)


def test_a_union_keeps_the_larger_number_of_equal_rows(family: Family, tmp_path: Path) -> None:
    from cachekd.store.merge import merge

    row = chat_rows(1)
    for name, copies in (("one", 1), ("two", 2)):
        file = write_rows(tmp_path / f"{name}.jsonl", row * copies)
        cachekd.precompute(config(family, file, tmp_path / name))
    merged = merge([str(tmp_path / "one"), str(tmp_path / "two")], str(tmp_path / "both"))
    assert merged.totals["samples"] == 2


def test_the_same_run_has_the_same_shards(family: Family, data: Path, tmp_path: Path) -> None:
    roots = [
        cachekd.precompute(config(family, data, tmp_path / name, unit_tokens=200))["root"]
        for name in ("a", "b")
    ]
    assert roots[0] == roots[1]


def test_records_hold_what_the_teacher_says(family: Family, data: Path, tmp_path: Path) -> None:
    """Against a dense float64 forward pass of each document alone: a shifted capture fails."""
    import torch
    from transformers import AutoModelForCausalLM

    cachekd.precompute(config(family, data, tmp_path / "cache", temperatures=(1.0, 3.0)))
    model = AutoModelForCausalLM.from_pretrained(family.teacher).double().eval()
    for record in cachekd.open_cache(str(tmp_path / "cache")):
        ids = torch.from_numpy(record.input_ids.astype(np.int64))
        with torch.no_grad():
            dense = torch.log_softmax(model(input_ids=ids[None]).logits[0, :-1], dim=-1)
        logits = record.logits
        rows = np.repeat(np.arange(logits.rows), np.diff(logits.offsets))
        assert np.abs(dense.numpy()[rows, logits.ids] - logits.logprobs).max() < 1e-4
        own = dense[torch.arange(logits.rows), ids[1:]]
        assert np.abs(own.numpy() - logits.next_logprob).max() < 1e-4
        head = np.bincount(rows, np.exp(dense.numpy()[rows, logits.ids]))
        assert np.abs(np.exp(logits.tail) - (1 - head)).max() < 1e-5
        assert np.abs(-(dense.exp() * dense).sum(-1).numpy() - logits.entropy).max() < 1e-4
        hot = torch.logsumexp(dense / 3.0, dim=-1).numpy()
        assert np.abs(hot - logits.lognorm[3.0]).max() < 1e-4


def test_a_planted_off_by_one_is_found(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above has teeth: rows shifted by one in the teacher make it fail."""
    from cachekd.teachers import _selection

    whole = _selection.pick

    def shifted(logits_NV, *further):  # type: ignore[no-untyped-def]
        return whole(logits_NV.roll(1, dims=0), *further)

    monkeypatch.setattr(_selection, "pick", shifted)
    with pytest.raises(AssertionError):
        test_records_hold_what_the_teacher_says(family, data, tmp_path)
