"""Priors of a cache as files: written once, read and checked when a shard first needs one."""

from __future__ import annotations

from cachekd.codecs._priors import Prior, load_prior
from cachekd.data.digests import bytes_digest
from cachekd.errors import CorruptCache
from cachekd.store.io import Location
from cachekd.store.layout import prior_name


class Priors:
    """The priors of one cache, each read once."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._held: dict[str, Prior] = {}

    def get(self, digest: str) -> Prior:
        """The prior of this digest.

        Raises:
            CorruptCache: it is missing or altered; names the file.
        """
        if digest not in self._held:
            name = prior_name(digest)
            data = self._location.read(name)
            if bytes_digest(data) != digest:
                raise CorruptCache(
                    f"{self._location.path(name)}: its bytes do not have the digest it names"
                )
            self._held[digest] = load_prior(self._location.path(name), data)
        return self._held[digest]


def write_prior(location: Location, prior: Prior) -> str:
    """Write a prior; its digest."""
    data = prior.dump()
    digest = bytes_digest(data)
    location.create(prior_name(digest), data)
    return digest
