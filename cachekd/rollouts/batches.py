"""Batches of things of like length, within a budget. In: lengths. Out: places, longest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Places of things of like length; what is more than the budget by itself goes alone.

    Args:
        lengths: of each.
        budget: most tokens of a batch, padded (rows x longest).
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
