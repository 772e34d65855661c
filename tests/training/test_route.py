"""Routing by domain: each sample from its own teacher's cache, and nothing left out in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeCache, documents, record, teacher_of
from tiny import Family

from cachekd.data.models import weights_digest
from cachekd.errors import ConfigError, DataError, MismatchError
from cachekd.objectives import Needs
from cachekd.training import checks
from cachekd.training.collate import Collator
from cachekd.training.loader import CacheDataset, summary

TEXTS = documents(12, seed=5)
LABELS = ["", "law", "", "med", "law", "", "", "med", "", "", "law", ""]
EXPERT_SHIFT = 1


def _cache(name: str, places: Any = range(12), labels: Any = LABELS) -> FakeCache:
    """Texts of these places; the expert's distributions are others than the reference's."""
    shift = EXPERT_SHIFT if name == "expert" else 0
    own = [record(TEXTS[i], domain=labels[i], shift=shift) for i in places]
    return FakeCache(own, name=name, capture_id=name)


def _served(dataset: CacheDataset) -> dict[tuple[int, ...], int]:
    """Text -> whether its targets are the expert's (1) or the reference's (0)."""
    found = {}
    for i in range(len(dataset)):
        item = dataset.record(i)
        best = int(item.logits.ids[0])
        logits = teacher_of(item.input_ids.tolist())[0]
        sides = [int(logits.roll(shift).argmax()) for shift in (0, EXPERT_SHIFT)]
        assert best in sides
        found[tuple(item.input_ids.tolist())] = sides.index(best)
    return found


def test_each_sample_learns_from_its_own_teacher_though_both_caches_hold_all() -> None:
    for caches in (
        [_cache("expert"), _cache("reference")],
        [_cache("reference"), _cache("expert")],
    ):
        dataset = CacheDataset(caches, route=())
        expected = {
            tuple(text): int(bool(label)) for text, label in zip(TEXTS, LABELS, strict=True)
        }
        assert _served(dataset) == expected
        assert dataset.dropped == {
            "served by the cache 'reference'": 7,
            "served by the cache 'expert'": 5,
        }
        assert summary(dataset)["samples_by_cache"] == {"expert": 5, "reference": 7}
        rows = Collator()(dataset.records(range(12)))["targets"]
        own = np.repeat([bool(dataset.record(i).domain) for i in range(12)], dataset.lengths - 1)
        assert rows["expert"].tolist() == own.tolist()


def test_named_domains_are_the_experts_and_other_labels_are_not() -> None:
    dataset = CacheDataset([_cache("expert"), _cache("reference")], route=("law",))
    expected = {tuple(t): int(label == "law") for t, label in zip(TEXTS, LABELS, strict=True)}
    assert _served(dataset) == expected


def test_caches_that_hold_only_their_own_part_are_enough() -> None:
    own = [i for i, label in enumerate(LABELS) if label]
    rest = [i for i, label in enumerate(LABELS) if not label]
    dataset = CacheDataset([_cache("expert", own), _cache("reference", rest)], route=())
    assert len(dataset) == 12 and not dataset.dropped


def test_a_sample_that_its_cache_lacks_is_an_error_or_counted() -> None:
    caches = [_cache("expert"), _cache("reference", range(1, 12))]
    missing = caches[0].sample_ids[0].hex()
    with pytest.raises(DataError, match=f"1 of 7 samples.*'reference', which lacks.*{missing}"):
        CacheDataset(caches, route=())
    dataset = CacheDataset(caches, route=(), on_missing="skip")
    assert len(dataset) == 11
    assert dataset.dropped["not in the cache 'reference'"] == 1


def test_one_text_labelled_in_one_cache_only_is_refused() -> None:
    caches = [_cache("expert"), _cache("reference", labels=[""] * 12)]
    with pytest.raises(MismatchError, match=r"5 texts.*--domain-column"):
        CacheDataset(caches, route=())


def test_what_routing_needs_is_said() -> None:
    with pytest.raises(ConfigError, match=r"'law'.*Known: law, med|Did you mean 'law'"):
        CacheDataset([_cache("expert"), _cache("reference")], route=("lav",))
    plain = [""] * 12
    with pytest.raises(ConfigError, match="--domain-column"):
        CacheDataset([_cache("expert", labels=plain), _cache("reference", labels=plain)], route=())
    with pytest.raises(ConfigError, match="--cache expert=A --cache reference=B"):
        CacheDataset([_cache("expert"), _cache("other")], route=())


def test_the_reference_must_be_the_student_as_it_starts(family: Family, tmp_path: Path) -> None:
    needs = Needs(start="reference", one_teacher=False)
    own = weights_digest(family.student)
    good = FakeCache(
        [record([1, 2])], name="reference", weights=own, adapter=None, dtype="bfloat16"
    )
    checks.check_start(needs, [good], family.student)
    other = FakeCache([record([1, 2])], name="reference", weights="0123", adapter=None)
    with pytest.raises(MismatchError, match=f"0123.*{own}.*--teacher {family.student}"):
        checks.check_start(needs, [other], family.student)
    adapted = FakeCache([record([1, 2])], name="reference", weights=own, adapter={"weights": "a"})
    with pytest.raises(MismatchError, match="with an adapter"):
        checks.check_start(needs, [adapted], family.student)
    with pytest.raises(ConfigError, match="--cache reference=PATH"):
        checks.check_start(needs, [FakeCache([record([1, 2])], name="main")], family.student)
    checks.check_start(Needs(), [other], family.student)
