"""Routing by domain: one teacher for the samples of a domain, another for all other samples.

Domain alignment from an expert ("A Teacher Is Worth A Million Instructions", Eq. 6) has the target
p_expert where the sample is of the domain, and p_reference elsewhere. In: the caches ``expert`` and
``reference``, and the labels of the domain. Out: which samples are read from which. The label is
the sample's own, or that of the data file that samples are joined from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cachekd.data.packed import Labels, Places
from cachekd.errors import ConfigError, DataError, MismatchError
from cachekd.objectives import unknown
from cachekd.training.choose import Chosen, Mask, of_data, parts

if TYPE_CHECKING:
    from cachekd.store.reader import Cache
    from cachekd.training.join import DataSamples

EXPERT, REFERENCE = "expert", "reference"


def check_route(caches: Sequence[Cache]) -> None:
    """Refuse other caches than ``expert`` and ``reference``.

    Raises:
        ConfigError: shows how they are named.
    """
    names = [cache.name for cache in caches]
    if sorted(names) != [EXPERT, REFERENCE]:
        raise ConfigError(
            "routing by domain: expected two caches, called expert and reference; found "
            f"{', '.join(map(repr, names))}. Name them: --cache expert=A --cache reference=B"
        )


def routed(
    caches: Sequence[Cache], domains: Sequence[str], data: DataSamples | None, on_missing: str
) -> Chosen:
    """Samples of the domains from ``expert``, all others from ``reference``.

    Args:
        caches: the two, in any order.
        domains: labels of the domain; none: every sample that has a label.
        data: samples of a data file with labels of their own, or None.
        on_missing: fail or skip.

    Raises:
        ConfigError: caches or labels are not there.
        DataError: samples are not in the cache that should serve them, and ``on_missing`` is fail.
        MismatchError: one text is of the domain in one cache, and not in the other.
    """
    check_route(caches)
    tables = [data.table] if data is not None else [cache.samples for cache in caches]
    _check_labels([table.domains for table in tables], domains)
    experts = [_of_domain(table.domains, domains) for table in tables]
    if data is not None:
        expert = experts[0]
        allowed = [expert if cache.name == EXPERT else ~expert for cache in caches]
        return of_data(caches, data, allowed, on_missing)
    own = [e if c.name == EXPERT else ~e for c, e in zip(caches, experts, strict=True)]
    _check_one_side(caches, own)
    left_out = {}
    for here, there in ((0, 1), (1, 0)):
        foreign = np.flatnonzero(~own[here])
        held = _held(caches, own, here, there)
        missing = foreign[~held]
        if len(missing) and on_missing == "fail":
            raise _lacking(caches[here], caches[there], missing, len(foreign))
        left_out[f"served by the cache {caches[there].name!r}"] = int(held.sum())
        left_out[f"not in the cache {caches[there].name!r}"] = len(missing)
    return parts(own, left_out)


def _of_domain(labels: Labels, domains: Sequence[str]) -> Mask:
    """Whether each sample is of the domain, [P]."""
    wanted = [name in domains if domains else name != "" for name in labels.names]
    return np.array(wanted, np.bool_)[labels.codes]


def _check_labels(labels: Sequence[Labels], domains: Sequence[str]) -> None:
    used = {part.names[code] for part in labels for code in np.unique(part.codes).tolist()}
    known = sorted(used - {""})
    if not known:
        raise ConfigError(
            "routing by domain: no sample has a domain label, so that nothing would be learned "
            "from the expert. Capture with --domain-column NAME, or give --data with it"
        )
    for name in domains:
        if name not in known:
            raise ConfigError(unknown(name, known, "a domain label of any sample"))


def _held(caches: Sequence[Cache], own: Sequence[Mask], here: int, there: int) -> Mask:
    """Which of the samples that ``there`` must serve it has among its own, by their tokens."""
    served = Places(caches[there].samples.keys.take(np.flatnonzero(own[there])))
    keys = caches[here].samples.keys.take(np.flatnonzero(~own[here]))
    return np.asarray(served.find(keys) >= 0)


def _check_one_side(caches: Sequence[Cache], own: Sequence[Mask]) -> None:
    """A text learns from one teacher only."""
    keys = [c.samples.keys.take(np.flatnonzero(o)) for c, o in zip(caches, own, strict=True)]
    both = np.flatnonzero(Places(keys[0]).find(keys[1]) >= 0)
    if len(both):
        place = int(np.flatnonzero(own[1])[both[0]])
        raise MismatchError(
            f"routing by domain: {len(both)} texts are of the expert's domain in cache "
            f"{EXPERT!r} and not in cache {REFERENCE!r}, such as sample "
            f"{caches[1].sample_ids[place].hex()} of {caches[1].name!r}. Capture both caches with "
            "the same --domain-column, or give the labels with --data and --domain-column"
        )


def _lacking(
    here: Cache, there: Cache, missing: np.ndarray[tuple[int], np.dtype[np.int64]], wanted: int
) -> DataError:
    place = int(missing[0])
    label = here.samples.domains[place]
    return DataError(
        f"routing by domain: {len(missing)} of {wanted} samples of cache {here.name!r} learn from "
        f"the cache {there.name!r}, which lacks them, such as sample "
        f"{here.sample_ids[place].hex()} (domain {label!r}). Capture them there with the same "
        f"--domain-column: cachekd precompute ... --cache {there.url}"
    )
