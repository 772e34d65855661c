"""Collecting what a cache no longer needs: files that nothing names, and seals that are superseded.

Comes in: a location and an age. Goes out: a `Garbage`, and the same taken away. A file stays while
a commit record, a plan or the newest seal names it; while an older seal names it that was newest
within this age (a reader may have opened it); and while it is itself younger (a writer may be about
to name it). Taken away in any order, and only in part, the cache stays the same cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cachekd.errors import StoreError
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
from cachekd.store.manifest import Manifest, generations, load_seal
from cachekd.store.state import CacheState, read_state

_FOLDERS = ("samples", "logits", "attention", "priors", "index")
_SUFFIXES = (".parquet", ".safetensors", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """What is not needed.

    Attributes:
        files: bytes of each file, by name.
        spared: bytes of files that are not needed either, but too young to go.
    """

    files: dict[str, int]
    spared: dict[str, int]


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
    state = read_state(location)
    root = location.entries()
    found = generations(location)
    needed = _named_by_state(state)
    seals: list[str] = []
    for generation, following in zip(found, [*found[1:], None], strict=True):
        name = manifest_name(generation)
        superseded = None if following is None else manifest_name(following)
        if superseded is None or now - _time(location, superseded, root) < older_than:
            needed |= _named_by_seal(load_seal(location, generation))
        else:
            seals.append(name)
    files: dict[str, int] = {name: root[name].size for name in seals}
    spared: dict[str, int] = {}
    for name, entry in _all(location):
        if name not in needed:
            young = now - _time(location, name, {name: entry}) < older_than
            (spared if young else files)[name] = entry.size
    return Garbage(files=files, spared=spared)


def take_away(location: Location, garbage: Garbage) -> None:
    """Take it away: seals first, so that none names a file that is gone.

    Raises:
        StoreError: a file cannot be taken away.
    """
    for name in sorted(garbage.files, key=lambda name: ("/" in name, name)):
        location.remove(name)


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
