"""Which shards of a cache come: those of some records, of a domain, or a random share.

Comes in: a `Content` and what is wanted. Goes out: digests of shards, and how much of what was
wanted they hold. Shards come whole: a record is found in one by the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cachekd.data.packed import Keys
from cachekd.errors import DataError
from cachekd.sharing.content import Content
from cachekd.store.samples import SampleTable
from cachekd.store.seal import load_samples
from cachekd.store.verify import drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Shards that come, and why.

    Attributes:
        shards: digests.
        told: how they were chosen, as plain JSON: for the seal and the report.
    """

    shards: frozenset[str]
    told: dict[str, Any]


def choose(
    content: Content,
    *,
    keys: Keys | None = None,
    domains: Sequence[str] = (),
    fraction: float = 1.0,
    seed: int = 0,
) -> Choice:
    """Shards that hold any of these keys and a sample of these domains; of them a random share.

    Raises:
        DataError: there are none, or a domain is not in the cache; names those that are.
    """
    shards = frozenset(content.manifest.shards)
    told: dict[str, Any] = {}
    if keys is not None:
        shards, told = _with_keys(content, keys)
    if domains:
        shards &= _with_domains(content, domains)
        told["domains"] = sorted(domains)
    if fraction < 1:
        shards = drawn(shards, fraction, seed)
        told |= {"fraction": fraction, "seed": seed}
    if not shards:
        raise DataError(f"{content.location.url}: no shard holds all that was asked for together")
    told |= {"shards": len(shards), "of": len(content.manifest.shards)}
    return Choice(shards=shards, told=told)


def samples_of(content: Content) -> SampleTable:
    """All samples of a cache.

    Raises:
        CorruptCache: a file of samples is missing or altered.
    """
    manifest = content.manifest
    return load_samples(content.location, manifest.samples, manifest.written())


def _with_keys(content: Content, keys: Keys) -> tuple[frozenset[str], dict[str, Any]]:
    index, wanted = content.index(), Keys(np.unique(keys.array))
    held = index.holds(wanted)
    if not held.any():
        raise DataError(
            f"{content.location.url} holds none of the {len(wanted)} records of that data: "
            "other rows, another prompt template (cachekd inspect shows the cache's), or rows cut "
            "at another length (--on-long)"
        )
    numbers = np.unique(index.shards_of(wanted.take(np.flatnonzero(held))))
    shards = frozenset(index.shards[int(number)] for number in numbers)
    return shards, {"records_wanted": len(wanted), "records_found": int(held.sum())}


def _with_domains(content: Content, domains: Sequence[str]) -> frozenset[str]:
    samples = samples_of(content)
    names = sorted(set(samples.domains.names))
    unknown = sorted(set(domains) - set(names))
    if unknown:
        shown = ", ".join(repr(name) for name in names[:20])
        raise DataError(
            f"domain: {content.location.url} has no samples of {', '.join(map(repr, unknown))}; "
            f"its domains are {shown}"
        )
    numbers = [samples.domains.names.index(name) for name in domains]
    own = np.flatnonzero(np.isin(samples.domains.codes, numbers))
    index = content.index()
    own_keys = samples.keys.take(own)
    held = own_keys.take(np.flatnonzero(index.holds(own_keys)))
    return frozenset(index.shards[int(n)] for n in np.unique(index.shards_of(held)))
