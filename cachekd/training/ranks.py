"""Ranks: numbers that put rows in an order which nothing but their identity and a text decides.

In: identities of rows (digests, 128 bits) and a text such as ``seed/epoch``. Out: for each row 128
bits that look drawn at random; rows sorted by them are shuffled. Whole arrays at a time, by
SplitMix64 keyed with a digest of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from cachekd.data.packed import Keys
from cachekd.data.splitmix import mixed
from cachekd.types import Int64

Words = NDArray[np.uint64]


def words_of(keys: Keys) -> Words:
    """Digests as two numbers each, [P, 2]."""
    return keys.data.view("<u8").reshape(-1, 2).astype(np.uint64)


def set_digest(ids: Keys) -> str:
    """Digest of a set of ids, in whatever order they come."""
    return blake2b(Keys(np.sort(ids.array)).data.data, digest_size=16).hexdigest()


def digest_words(text: str) -> Words:
    """Digest of a text as two numbers, [2]."""
    digest = blake2b(text.encode(), digest_size=16).digest()
    return np.frombuffer(digest, "<u8").astype(np.uint64)


def ranks(identities_P2: Words, text: str) -> Words:
    """Ranks of rows under a text, [P, 2]."""
    key_2 = digest_words(text)
    low_P = mixed(identities_P2[:, 0] ^ key_2[0])
    high_P = mixed(low_P + identities_P2[:, 1] ^ key_2[1])
    return np.stack([mixed(low_P ^ high_P), high_P], 1)


def ranked(ranks_P2: Words, first_by: Int64 | None = None) -> Int64:
    """Places in the order of their ranks, or of a number before that, [P]."""
    keys = [ranks_P2[:, 0], ranks_P2[:, 1], *([] if first_by is None else [first_by])]
    return np.lexsort(keys).astype(np.int64)


def ranked_names(names: Sequence[str], text: str) -> Int64:
    """Place of each of these names in an order under a text, [S]."""
    identities = np.array([digest_words(name) for name in names], np.uint64).reshape(-1, 2)
    places = np.empty(len(names), np.int64)
    places[ranked(ranks(identities, text))] = np.arange(len(names))
    return places
