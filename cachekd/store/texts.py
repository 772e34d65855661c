"""Token ids that a cache does not hold, because it was shared without them: from data of one's own.

Comes in: samples and their keys. Goes out: the token ids of a key. A shard without text holds no
``input_ids``; its records are met with the data that made the same key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cachekd.data.packed import Keys, Places
from cachekd.errors import DataError, MismatchError
from cachekd.types import Int32, Sample

NO_TEXT = -1  # stands for each token id that a shard does not hold
TEXT_LEFT_OUT = "text left out"  # what a plan, and so a seal, says of records without text


class Texts:
    """Token ids by key.

    Args:
        keys: of the samples.
        samples: with their token ids.
    """

    def __init__(self, keys: Keys, samples: Sequence[Sample]) -> None:
        self._keys, self._samples = keys, samples
        self._places: Places | None = None

    def __reduce__(self) -> tuple[Any, ...]:  # what waits on disk is no other process's
        return Texts, (self._keys, list(self._samples))

    def find(self, key: bytes) -> Int32 | None:
        """Token ids of a key, if the data has it."""
        if self._places is None:
            self._places = Places(self._keys)
        place = int(self._places.find(Keys.of([key]))[0])
        return None if place < 0 else self._samples[place].input_ids


def no_text(tokens: int) -> Int32:
    """What stands for the token ids of a document whose text the shard does not hold, [L]."""
    return np.full(tokens, NO_TEXT, np.int32)


def lacks_text(changed: Iterable[Mapping[str, int]]) -> bool:
    """Whether any plan of a cache says that records are without their text.

    Args:
        changed: field ``changed`` of each plan, or of each run of a seal.
    """
    return any(TEXT_LEFT_OUT in counts for counts in changed)


def refuse_mix(door: str, left: bool, right: bool, left_url: str, right_url: str) -> None:
    """Refuse to unite a cache without text (True) and one with it: readers would lack text.

    Raises:
        MismatchError: says which is which.
    """
    if left == right:
        return
    without, whole = (left_url, right_url) if left else (right_url, left_url)
    raise MismatchError(
        f"{door}: {without} was shared without the text of its samples (push --keys-only), and "
        f"{whole} holds text. United, some records of one would stand for those of the other: keep "
        "them in two places"
    )


def with_text(url: str, key: bytes, input_ids: Int32, texts: Texts | None) -> Int32:
    """Token ids of a record: those of its shard, or where that holds none those of the data.

    Raises:
        DataError: neither has them.
    """
    if input_ids[0] != NO_TEXT:
        return input_ids
    found = texts.find(key) if texts is not None else None
    if found is None or len(found) != len(input_ids):
        raise DataError(
            f"{url} was shared without the text of its samples (push --keys-only), and no data has "
            f"the tokens of key {key.hex()}. Train with --data and the rows that it was made of"
        )
    return found
