"""Which samples a dataset gives, and in which cache the targets of each are.

In: opened caches, and what is asked: all of them, samples of a data file, routing by domain, or a
mixture of teachers. Out: `Chosen`, and how many samples were left out, by reason. Samples of one
cache or of a file are met with those of another by their tokens (the sample key).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cachekd.data.packed import Keys, Places
from cachekd.errors import DataError
from cachekd.types import Int32, Int64

if TYPE_CHECKING:
    from cachekd.store.reader import Cache
    from cachekd.training.join import DataSamples

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chosen:
    """P samples; M caches hold targets of each (one, but in a mixture).

    Attributes:
        caches: place of the cache of each sample, the first of a mixture, int32 [P].
        rows: number of the sample in that cache, or in each of a mixture, int32 [M, P].
        of_data: number of the sample in the data file, int32 [P]; None without a file.
        left_out: samples left out, by reason.
    """

    caches: Int32
    rows: Int32
    of_data: Int32 | None
    left_out: Counter[str]

    def take(self, places: Int64) -> Chosen:
        """The samples at these places."""
        return Chosen(
            caches=self.caches[places],
            rows=self.rows[:, places],
            of_data=None if self.of_data is None else self.of_data[places],
            left_out=self.left_out,
        )


def everything(caches: Sequence[Cache]) -> Chosen:
    """All samples; one that two caches of the same capture hold is taken once."""
    repeated = _repeated(caches)
    count = sum(int(own.sum()) for own in repeated)
    return parts([~own for own in repeated], {"held more than once": count})


def parts(taken: Sequence[Mask], left_out: dict[str, int]) -> Chosen:
    """The samples that are taken of each cache, a mask for each."""
    rows = [np.flatnonzero(own) for own in taken]
    numbers = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
    return Chosen(
        caches=numbers.astype(np.int32),
        rows=np.concatenate(rows)[None].astype(np.int32),
        of_data=None,
        left_out=Counter({reason: count for reason, count in left_out.items() if count}),
    )


def of_data(
    caches: Sequence[Cache], data: DataSamples, allowed: Sequence[Mask | None], on_missing: str
) -> Chosen:
    """Samples of a file, each in the first cache that may serve it and holds its tokens.

    Args:
        caches: where targets are looked for.
        data: samples of the file.
        allowed: which samples each cache may serve; None: all.
        on_missing: fail or skip.

    Raises:
        DataError: samples are in no cache, and ``on_missing`` is fail.
    """
    numbers = np.full(len(data), -1, np.int32)
    rows = np.zeros(len(data), np.int32)
    for number, (cache, mask) in enumerate(zip(caches, allowed, strict=True)):
        found = _found(cache, data.table.keys)
        new = (numbers < 0) & (found >= 0)
        new = new if mask is None else new & mask
        numbers[new], rows[new] = number, found[new]
    held = numbers >= 0
    _check_held(held, data, caches, on_missing)
    at = np.flatnonzero(held)
    left_out = Counter({"not in the caches": len(held) - len(at)} if len(at) < len(held) else {})
    return Chosen(
        caches=numbers[at], rows=rows[None, at], of_data=at.astype(np.int32), left_out=left_out
    )


def mixed(
    caches: Sequence[Cache], members: Sequence[int], data: DataSamples | None, on_missing: str
) -> Chosen:
    """Samples whose tokens all members of a mixture hold: of a file, else of the first member.

    Raises:
        DataError: a member lacks some of them, and ``on_missing`` is fail.
    """
    own = [caches[number] for number in members]
    keys = own[0].samples.keys if data is None else data.table.keys
    rows = np.stack([_found(cache, keys) for cache in own])
    if data is None:
        rows[0] = np.arange(len(keys))
        _check_members(own, rows, on_missing)
    held: Mask = np.all(rows >= 0, axis=0)
    if data is not None:
        _check_held(held, data, own, on_missing)
    at = np.flatnonzero(held)
    left_out = Counter[str]()
    if len(at) < len(keys):
        left_out["not held by all members of the mixture"] = len(keys) - len(at)
    return Chosen(
        caches=np.full(len(at), members[0], np.int32),
        rows=rows[:, at].astype(np.int32),
        of_data=None if data is None else at.astype(np.int32),
        left_out=left_out,
    )


def _found(cache: Cache, keys: Keys) -> Int64:
    """A sample of the cache with each of these keys, [P]; -1 where there is none."""
    return Places(cache.samples.keys).find(keys)


def _check_held(held: Mask, data: DataSamples, caches: Sequence[Cache], on_missing: str) -> None:
    missing = np.flatnonzero(~held)
    if not len(missing) or on_missing == "skip":
        return
    names = ", ".join(repr(cache.name) for cache in caches)
    where = f"cache {names}" if len(caches) == 1 else f"the caches {names} that should serve them"
    advice = (
        "leave them out with --on-missing skip; rows that the capture cut or split are found with "
        "--on-long as it was there"
    )
    if len(missing) == len(held):
        advice = "check that --columns, --on-long and --domain-column are as at the capture"
    raise DataError(
        f"data: {len(missing)} of {len(held)} samples have no targets in {where}, such as "
        f"{data.name(int(missing[0]))}. Capture them there with cachekd precompute, or {advice}"
    )


def _check_members(own: Sequence[Cache], rows: Int64, on_missing: str) -> None:
    """Every member must hold the samples of every other."""
    if on_missing == "skip":
        return
    first = own[0]
    for cache, found in zip(own[1:], rows[1:], strict=True):
        back = _found(first, cache.samples.keys)
        for holder, lacking, places in ((first, cache, found), (cache, first, back)):
            missing = np.flatnonzero(places < 0)
            if len(missing):
                raise DataError(
                    f"mixture: {len(missing)} of {len(places)} samples of cache {holder.name!r} "
                    f"are not in cache {lacking.name!r}, such as sample "
                    f"{holder.sample_ids[int(missing[0])].hex()}. Capture the same data with every "
                    "teacher, or leave them out with --on-missing skip"
                )


def _repeated(caches: Sequence[Cache]) -> list[Mask]:
    """Of each cache the samples that an earlier place has too, under the same capture."""
    repeated = [np.zeros(len(cache.sample_ids), dtype=np.bool_) for cache in caches]
    for capture in {cache.identity.capture_id for cache in caches}:
        own = [i for i, cache in enumerate(caches) if cache.identity.capture_id == capture]
        if len(own) == 1:
            continue  # ids are different within a cache
        copies = Places(Keys.joined([Keys.of(caches[i].sample_ids) for i in own])).copies()
        ends = np.cumsum([len(repeated[i]) for i in own])
        for i, part in zip(own, np.split(copies > 0, ends[:-1]), strict=True):
            repeated[i] = part
    return repeated
