"""What others have at a place already: units of the same plans, captured with other bytes.

Comes in: a cache that travels, and a location. Goes out: what of it is of use there. A commit
record that another writer has made of a unit stays, so that a shard of one's own that only the same
unit names would lie there for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cachekd.sharing.content import Content
from cachekd.sharing.copier import Copier
from cachekd.store.io import Location
from cachekd.store.state import UnitRecord, committed, load_unit


def without_others(
    content: Content, into: Location, known: Mapping[str, str], copier: Copier
) -> Content:
    """What travels, but for units of which a location has other shards.

    Args:
        content: what travels.
        into: the location.
        known: files that its seal names, with their digests.
        copier: reads the records of units that have another digest there.
    """
    units = {name: own for name, own in content.documents.items() if name.startswith("units/")}
    differ = {name: own for name, own in units.items() if known.get(name, own) != own}
    others: dict[str, UnitRecord] = {}

    def one(name: str) -> None:
        mine = load_unit(name, copier.read(name, differ[name]))
        theirs = committed(into, mine.plan, mine.number)
        if theirs is not None and mine.files() != theirs.files():
            others[name] = mine

    copier.each(differ, one)
    if not others:
        return content
    rest = copier.read_all({name: own for name, own in units.items() if name not in others})
    needed = {file for name, data in rest.items() for file in load_unit(name, data).files()}
    left = {file for record in others.values() for file in record.files()} - needed
    return replace(
        content,
        blobs={name: blob for name, blob in content.blobs.items() if name not in left},
        documents={name: own for name, own in content.documents.items() if name not in others},
    )
