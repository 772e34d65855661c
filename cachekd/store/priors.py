"""Priors of a cache: chosen by what they save, written once, read when a shard first needs one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cachekd.codecs import Codec, CodecHeader
from cachekd.codecs._learn import learn_prior
from cachekd.codecs._priors import Prior, load_prior
from cachekd.data import limits
from cachekd.data.digests import bytes_digest
from cachekd.plugins import find
from cachekd.store.io import Location
from cachekd.store.layout import prior_name
from cachekd.store.names import too_large
from cachekd.types import TopKLogits

_TESTED = 5  # one record in so many is kept to choose by


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
            path, size = self._location.path(name), self._location.size(name)
            if size > limits.PRIOR_BYTES:
                raise too_large(path, limits.PRIOR_BYTES)
            data = self._location.checked(name, digest, size)
            self._held[digest] = load_prior(path, data.to_pybytes())
        return self._held[digest]


def write_prior(location: Location, prior: Prior) -> str:
    """Write a prior; its digest."""
    data = prior.dump()
    digest = bytes_digest(data)
    location.keep(prior_name(digest), data, digest)
    return digest


def best_prior(
    records: Sequence[TopKLogits], header: CodecHeader, tokens: int, budget: int
) -> Prior:
    """Of priors of several sizes the one with which a whole capture takes the fewest bytes.

    Args:
        records: a sample of the capture; a part of it is kept out of learning and judges.
        header: how shards are encoded (its prior is not looked at).
        tokens: tokens of the whole capture: the prior's own bytes count once beside them.
        budget: about how many bytes the lists of contexts may take.
    """
    tested = records[::_TESTED]
    learned_from = [record for i, record in enumerate(records) if i % _TESTED] or tested
    share = tokens / max(1, sum(record.rows for record in tested))
    codec: type[Codec] = find("codecs", header.codec)
    named = replace(header, prior="-")

    def cost(prior: Prior) -> float:
        encode = codec(named, prior).encode
        return len(prior.dump()) + share * sum(len(encode(record)) for record in tested)

    sizes = (budget, budget // 4, 0)
    return min((learn_prior(learned_from, header.vocab_size, budget=b) for b in sizes), key=cost)
