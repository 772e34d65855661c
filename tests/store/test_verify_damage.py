"""Random damage to every kind of file, in numbers: found, true or refused, never a wrong row.

The default run takes some hundred; those marked ``reliability`` ten thousand flips, of which one in
25 is verified and read by a second reader; ``benchmarks/damage.py`` ten times as many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import numpy as np
import pyarrow as pa
import pytest
from damage import NOT_TRUSTED, flip, flipped, names_of, put
from document_mutations import CHANGES, Documents
from mutations import Patient, flips, kind_of, make_cache, swaps, truncations, zeros

import cachekd
from cachekd.errors import StoreError
from cachekd.training.loader import CacheDataset
from cachekd.types import Record


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def whole(root: Path) -> Path:
    return make_cache(root)


@pytest.fixture(scope="module")
def other(root: Path) -> Path:
    """Another cache of the same identity."""
    return make_cache(root, first=100)


@pytest.fixture
def patient(whole: Path, tmp_path: Path) -> Iterator[Patient]:
    threads = pa.cpu_count()
    pa.set_cpu_count(1)
    yield Patient(Path(copytree(whole, tmp_path / "cache")))
    pa.set_cpu_count(threads)


def check(patient: Patient, least: int) -> Counter[str]:
    """No wrong row, no error without the file's name, all found; the sum of the counts."""
    total: Counter[str] = Counter()
    for kind, counts in patient.counts.items():
        assert counts["damaged"] == counts["true"] + counts["refused"], (kind, counts)
        assert counts["found"] == counts["verified"], (kind, counts)
        assert not counts["another answer at the second start"], (kind, counts)
        total += counts
    assert total["damaged"] >= least and total["found"] > 0
    # Readers do not look at these; all else is refused before a record is given out.
    unread = {"card", "hint", "plans", "units", "generated"}
    assert all(c["refused"] == c["damaged"] for k, c in patient.counts.items() if k in SHARDS)
    assert unread <= patient.counts.keys() or total["damaged"] < 100
    return total


SHARDS = {"logits", "attention", "priors", "samples"}


def test_flips(patient: Patient) -> None:
    flips(patient, 200, seed=1, verify_one_in=4)
    total = check(patient, least=200)
    assert total["verified"] > 30 and total["refused"] > 80


@pytest.mark.reliability
@pytest.mark.timeout(900)
def test_ten_thousand_flips(patient: Patient) -> None:
    flips(patient, 10_000, seed=2, verify_one_in=50)
    assert check(patient, least=10_000)["verified"] > 150


def test_truncated_and_lengthened(patient: Patient) -> None:
    truncations(patient, 2 * len(patient.names), seed=3)
    check(patient, least=2 * len(patient.names))


@pytest.mark.reliability
def test_truncated_and_lengthened_often(patient: Patient) -> None:
    truncations(patient, 300, seed=4)
    check(patient, least=300)


def test_zeros(patient: Patient) -> None:
    zeros(patient, len(patient.names), seed=5)
    check(patient, least=len(patient.names))


def test_every_two_files_of_a_folder_change_places(patient: Patient) -> None:
    """Valid files under the wrong names."""
    swaps(patient)
    total = check(patient, least=12)
    assert total["verified"] == total["damaged"]


def kinds(documents: Documents) -> dict[str, Counter[str]]:
    for what, counts in documents.counts.items():
        assert not counts["wrong"] and not counts["left"], (what, counts)
        assert not counts["not clean after repair"] and not counts["lost a good shard"], what
        assert not counts["seal back in other bytes"], (what, counts)
        assert counts["true"] + counts["refused"] == 2 * counts["mutated"], (what, counts)
    return documents.counts


def test_mutated_seals_and_records(patient: Patient, other: Path) -> None:
    documents = Documents(patient, other)
    documents.mutate(60, seed=6, repair_one_in=6)
    counts = kinds(documents)
    assert counts.keys() >= CHANGES.keys()
    assert sum(c["seal back with equal bytes"] for c in counts.values()) > 1


@pytest.mark.reliability
@pytest.mark.timeout(600)
def test_a_thousand_mutated_seals_and_records(patient: Patient, other: Path) -> None:
    documents = Documents(patient, other)
    documents.mutate(1000, seed=7, repair_one_in=20)
    counts = kinds(documents)
    assert len(counts) == len(CHANGES) + 6
    assert sum(c["seal back with equal bytes"] for c in counts.values()) > 10


def test_training_is_never_given_a_wrong_record(patient: Patient) -> None:
    """A dataset that is open, and one that is opened after the damage: by tokens and targets."""

    def given(dataset: CacheDataset) -> list[bytes]:
        records = dataset.__getitems__(list(range(len(dataset))))
        assert all(isinstance(record, Record) for record in records)
        return [
            b"".join((r.input_ids.tobytes(), r.logits.ids.tobytes(), r.logits.logprobs.tobytes()))
            for r in records
        ]

    def opened() -> CacheDataset:
        return CacheDataset(cachekd.open_cache(str(patient.cache)))

    truth = given(opened())
    rng, refused = np.random.default_rng(8), Counter[str]()
    for name in patient.names:
        data = patient.whole[name]
        before = opened()
        put(patient.cache / name, flipped(data, int(rng.integers(len(data)))))
        for dataset in (before, None, None):
            try:
                assert given(dataset or opened()) == truth, name
            except StoreError as error:
                assert name in str(error)
                refused[kind_of(name)] += 1
        patient.heal([name])
    assert refused["logits"] == refused["attention"] == 3 * len(patient.shards)
    assert refused["priors"] and refused["samples"] and refused["seal"] and refused["index"]


def test_damage_that_was_met_is_met_again_by_the_same_reader(patient: Patient) -> None:
    """Nobody remembers that a file was fine, or that it was read once."""
    opened = cachekd.open_cache(str(patient.cache))
    name = next(name for name in patient.names if kind_of(name) == "logits")
    flip(patient.cache / name)
    number = patient.readers[name][0]
    for _ in range(2):
        with pytest.raises(StoreError, match=name):
            opened.read([number])
    patient.heal([name])
    assert opened.read([number])


def test_files_that_are_trusted_by_nobody_are_few(patient: Patient) -> None:
    assert {name for name in names_of(patient.cache) if name in NOT_TRUSTED} == NOT_TRUSTED
