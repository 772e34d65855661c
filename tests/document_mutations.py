"""Seals and commit records that were edited, torn, moved, or come from elsewhere; counted.

Every mutation must be refused, or change no row; and a repair must end in a clean cache: where a
seal was mutated in the very bytes that it had.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from damage import NOT_TRUSTED, flipped, snapshot
from mutations import Patient

from cachekd.store.layout import dump_document
from cachekd.store.repair import repair
from cachekd.store.verify import verify

Change = Callable[[bytes, np.random.Generator], bytes]


def _lines(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    return flipped(data, int(rng.integers(len(data))), int(rng.integers(1, 256)))


def _truncate(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(len(data)))]


def _delete_line(data: bytes, rng: np.random.Generator) -> bytes:
    lines = _lines(data)
    del lines[int(rng.integers(len(lines)))]
    return b"".join(lines)


def _duplicate_line(data: bytes, rng: np.random.Generator) -> bytes:
    lines = _lines(data)
    place = int(rng.integers(len(lines)))
    return b"".join([*lines[:place], lines[place], *lines[place:]])


def _reorder(data: bytes, rng: np.random.Generator) -> bytes:
    lines = _lines(data)
    left, right = (int(place) for place in rng.choice(len(lines), 2, replace=False))
    lines[left], lines[right] = lines[right], lines[left]
    return b"".join(lines)


def _edit(data: bytes, rng: np.random.Generator) -> bytes:
    """A field of another value under a checksum that fits: generation, a count, a name."""
    document = json.loads(data)
    kind = document["format"].removeprefix("cachekd-")
    fields = [name for name in document if name not in ("format", "version", "checksum")]
    field = fields[int(rng.integers(len(fields)))]
    value = document[field]
    changed = value + 1 if isinstance(value, int) else value[::-1] if isinstance(value, str) else {}
    document[field] = changed
    return dump_document(
        kind, {k: v for k, v in document.items() if k not in ("format", "version", "checksum")}
    )


CHANGES: dict[str, Change] = {
    "flip": _flip,
    "truncate": _truncate,
    "line deleted": _delete_line,
    "line doubled": _duplicate_line,
    "lines reordered": _reorder,
    "field edited, checksum made anew": _edit,
}


class Documents:
    """The seal and the commit records of a cache, and those of another one of the same identity."""

    def __init__(self, patient: Patient, other: Path) -> None:
        self.patient = patient
        self.seal = max(name for name in patient.whole if name.startswith("manifest-"))
        self.records = [name for name in patient.whole if name.startswith("units/")]
        self.other = snapshot(other)
        self.counts: dict[str, Counter[str]] = {}

    def mutate(self, count: int, seed: int, *, repair_one_in: int = 1) -> None:
        """So many mutations: two in five of the seal, two of records, one of what stands where."""
        rng = np.random.default_rng(seed)
        kinds = list(CHANGES)
        for i in range(count):
            if i % 5 < 4:
                name = (
                    self.seal if i % 5 < 2 else self.records[int(rng.integers(len(self.records)))]
                )
                what = kinds[int(rng.integers(len(kinds)))]
                damaged = {name: CHANGES[what](self.patient.whole[name], rng)}
            else:
                what, damaged = self.misplaced(rng)
            self.suffer(what, damaged, repaired=i % repair_one_in == 0)

    def misplaced(self, rng: np.random.Generator) -> tuple[str, dict[str, bytes]]:
        """A valid file where another one belongs, or one too many."""
        whole = self.patient.whole
        older = min(name for name in whole if name.startswith("manifest-"))
        newer = f"manifest-{int(rng.integers(3, 99))}.json"
        foreign = [name for name in self.other if name.startswith("units/")]
        foreign_unit = foreign[int(rng.integers(len(foreign)))]
        own = self.records[int(rng.integers(len(self.records)))]
        hint = int(rng.integers(1, 99))
        cases = {
            "an older seal under the newest name": {self.seal: whole[older]},
            "a seal under a newer name": {newer: whole[self.seal]},
            "the seal of another cache": {self.seal: self.other[self.seal]},
            "a record of another cache": {foreign_unit: self.other[foreign_unit]},
            "a record of another cache in the place of one": {own: self.other[foreign_unit]},
            "a hint to another seal": {
                "manifest.json": dump_document("hint", {"newest": f"manifest-{hint}.json"})
            },
        }
        what = list(cases)[int(rng.integers(len(cases)))]
        return what, cases[what]

    def suffer(self, what: str, damaged: dict[str, bytes], *, repaired: bool) -> None:
        """Mutate, read what is sealed and what is committed, repair, heal, and count."""
        patient, counts = self.patient, self.counts.setdefault(what, Counter())
        changed = [name for name in damaged if damaged[name] != patient.whole.get(name)]
        counts["mutated"] += 1
        counts["the same bytes"] += not changed
        patient.put(damaged)
        for partial in (False, True):
            found = patient.read(changed, partial=partial)
            counts["wrong"] += found == "wrong"
            counts["refused"] += found.startswith("refused")
            counts["true"] += found == "true"
        if repaired:
            self._repair(changed, counts)
        patient.heal_all()

    def _repair(self, changed: list[str], counts: Counter[str]) -> None:
        patient = self.patient
        report = repair(str(patient.cache))
        counts["repaired"] += 1
        counts["left"] += bool(report.left)
        counts["not clean after repair"] += bool(verify(str(patient.cache)).problems)
        counts["wrong"] += patient.read((), partial=True) == "wrong"
        after = snapshot(patient.cache)
        if not any(name.startswith("units/") for name in changed):
            same = after.keys() == patient.whole.keys() and all(
                after[name] == data for name, data in patient.whole.items()
            )
            counts["seal back with equal bytes" if same else "seal back in other bytes"] += 1
        kept = [n for n in patient.whole if n.startswith("logits/") and n not in NOT_TRUSTED]
        counts["lost a good shard"] += any(after.get(name) != patient.whole[name] for name in kept)
