"""Collecting what a cache no longer needs: files that nothing names, and seals that are superseded.

Comes in: a location and an age. Goes out: a `Garbage`, and the same taken away. A file stays while
a commit record, a plan or the newest seal names it; while an older seal names it that was newest
within this age (a reader may have opened it); and while it is itself younger (a writer may be about
to name it). Before each few files it is looked again: writers may have come to need one. Taken away
in any order, and only in part, the cache stays the same cache.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from cachekd.errors import StoreError
from cachekd.store.at_once import each_of
from cachekd.store.io import Location
from cachekd.store.layout import (
    attention_name,
    index_name,
    manifest_name,
    prior_name,
    samples_name,
    shard_name,
)
from cachekd.store.listing import Entry
from cachekd.store.manifest import Manifest, generation_of, generations, load_seal
from cachekd.store.state import CacheState, read_state

_FOLDERS = ("samples", "logits", "attention", "priors", "index")
_SUFFIXES = (".parquet", ".safetensors", "")
_BATCH = 256  # files that go before it is looked again


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """What is not needed.

    Attributes:
        files: bytes of each file, by name.
        spared: bytes of files that are not needed either, but too young to go.
        needed: names of files that are.
        read: names of the plans, commit records and seals that say so.
    """

    files: dict[str, int]
    spared: dict[str, int]
    needed: frozenset[str]
    read: frozenset[str]


def find_garbage(location: Location, older_than: float, now: float) -> Garbage:
    """What is not needed in a cache.

    Args:
        location: the cache.
        older_than: seconds.
        now: seconds since 1970, as the filesystem tells time.

    Raises:
        CacheNotFound: there is no cache.
        CorruptCache: a document does not parse: then nothing can be told to be unneeded.
        StoreError: the filesystem does not tell how old a file is.
    """
    read = _documents(location)  # first: what comes meanwhile is read once more
    state = read_state(location)
    root = location.entries()
    found = generations(location)
    needed = _named_by_state(state)
    seals: dict[str, int] = {}
    for generation, following in zip(found, [*found[1:], None], strict=True):
        name = manifest_name(generation)
        superseded = None if following is None else manifest_name(following)
        if superseded is None or now - _time(location, superseded, root) < older_than:
            needed |= _named_by_seal(load_seal(location, generation))
        else:
            seals[name] = root[name].size
    files, spared = _by_age(location, needed, older_than, now)
    return Garbage(
        files={**seals, **files}, spared=spared, needed=frozenset(needed), read=frozenset(read)
    )


def take_away(
    location: Location, garbage: Garbage, older_than: float, now: float
) -> dict[str, int]:
    """Take it away: seals first, so that none names a file that is gone.

    Args:
        location: the cache.
        garbage: what was found there.
        older_than: as it was found.
        now: as it was found.

    Returns:
        bytes of each file that went, by name: not of those that a writer has come to need since.

    Raises:
        CorruptCache: a document that came meanwhile does not parse.
        StoreError: a file cannot be taken away.
    """
    waiting = sorted(garbage.files, key=lambda name: ("/" in name, name))
    taken: dict[str, int] = {}
    for first in range(0, len(waiting), _BATCH):
        garbage = _again(location, garbage, older_than, now)
        batch = [name for name in waiting[first : first + _BATCH] if name in garbage.files]
        remove_all(location, batch)
        taken |= {name: garbage.files[name] for name in batch}
    return taken


def remove_all(location: Location, names: Iterable[str]) -> None:
    """Take files away, in this order where they are on this machine (errors of `take_away`)."""
    each_of(location.remove, names, at_once=not location.local)


def _again(location: Location, garbage: Garbage, older_than: float, now: float) -> Garbage:
    """What is still not needed: documents are read again only where others have come."""
    if not _documents(location) <= garbage.read:
        return find_garbage(location, older_than, now)
    files, spared = _by_age(location, garbage.needed, older_than, now)
    seals = {name: size for name, size in garbage.files.items() if "/" not in name}
    return replace(garbage, files={**seals, **files}, spared=spared)


def _documents(location: Location) -> set[str]:
    """Names of all plans, commit records and seals."""
    named = {f"{folder}/{name}" for folder in ("plans", "units") for name in location.names(folder)}
    return named | {name for name in location.names() if generation_of(name) is not None}


def _by_age(
    location: Location, needed: Collection[str], older_than: float, now: float
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of the files that are not needed: of those that may go, and of the young."""
    files: dict[str, int] = {}
    young: dict[str, int] = {}
    for name, entry in _all(location):
        if name not in needed:
            spared = now - _time(location, name, {name: entry}) < older_than
            (young if spared else files)[name] = entry.size
    return files, young


def _named_by_state(state: CacheState) -> set[str]:
    """Files that plans and commit records name; a prior of units that are still to come too."""
    named = {name for record in state.units.values() for name in record.files()}
    named |= {samples_name(digest) for digest in state.samples()}
    return named | {prior_name(plan.prior) for plan in state.plans.values() if plan.prior}


def _named_by_seal(seal: Manifest) -> set[str]:
    return {
        *map(shard_name, seal.shards),
        *(attention_name(facts.digest) for facts in seal.attention.values()),
        *map(samples_name, seal.samples),
        *map(prior_name, seal.priors),
        index_name(seal.index),
    }


def _all(location: Location) -> Iterator[tuple[str, Entry]]:
    """Files that are named by their digest; what has another name is not the cache's."""
    for folder in _FOLDERS:
        for base, entry in location.entries(folder).items():
            stem = base.partition(".")[0]
            if len(stem) == 64 and base[64:] in _SUFFIXES:
                yield f"{folder}/{base}", entry


def _time(location: Location, name: str, entries: dict[str, Entry]) -> float:
    modified = entries[name].modified
    if modified is None:
        raise StoreError(
            f"{location.url}: its filesystem does not tell how old {name} is, so that it cannot be "
            "known whether a writer is at work with it"
        )
    return modified
