"""Who already has this teacher on this data: caches below a location, and what they cover.

Comes in: entries of the catalogue, perhaps the keys of some data. Goes out: lines of a table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from cachekd.data.packed import Keys, Places
from cachekd.sharing.catalogue import Entry, below
from cachekd.sharing.content import sealed_content
from cachekd.store.io import Location

_ENOUGH = 256  # keys in a sketch that a share is told from; of fewer the index is asked


def of_teacher(
    entries: Iterable[Entry], teacher: str, source_id: str | None
) -> list[tuple[Entry, str]]:
    """Entries of a teacher, and what each is known by: its source id, or its name alone.

    Args:
        entries: of a catalogue.
        teacher: a source id, a hub id, or a folder.
        source_id: of the teacher as it lies here, if it does.
    """
    names = {teacher, teacher.rstrip("/").rpartition("/")[2]}
    found = []
    for entry in entries:
        if entry.source_id in (teacher, source_id):
            found.append((entry, "source id"))
        elif entry.provenance.get("teacher") in names:
            found.append((entry, "name"))
    return found


def line(entry: Entry) -> dict[str, Any]:
    """What is told of a cache."""
    totals = entry.totals
    return {
        "cache": entry.folder,
        "teacher": entry.provenance.get("teacher"),
        "revision": entry.provenance.get("revision"),
        "data": list(entry.sources),
        "kinds": list(entry.kinds),
        "samples": totals.get("samples"),
        "tokens": totals.get("tokens"),
        "bytes": totals.get("bytes", 0) + totals.get("attention_bytes", 0),
        "sealed_at": entry.sealed_at,
        "source_id": entry.source_id,
        "capture_id": entry.capture_id,
        "root": entry.root,
    }


def covered(location: Location, entry: Entry, keys: Keys) -> dict[str, Any]:
    """The share of some data's records that a cache holds, and whether it was counted exactly."""
    wanted = Keys(np.unique(keys.array))
    drawn = entry.drawn(wanted)
    if len(drawn) == len(wanted) or len(drawn) >= _ENOUGH:
        found = Places(entry.sketch).find(drawn) >= 0
        exact = len(drawn) == len(wanted)
    else:
        found = sealed_content(below(location, entry.folder)).index().holds(wanted)
        exact = True
    share = float(found.mean()) if len(found) else 0.0
    return {"covered": share, "covered_exactly": exact}
