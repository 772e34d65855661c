"""Packing: which whole samples share a row.

In: lengths and a capacity. Out: bins of sample numbers. Best-fit decreasing: the longest sample
first, each into the fullest bin that still takes it (Ding et al., "Fewer Truncations Improve
Language Modeling", 2024). Nothing is cut and nothing is random.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence

from cachekd.errors import ConfigError


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Group samples into bins that hold at most ``capacity`` tokens each.

    Args:
        lengths: tokens of each sample.
        capacity: tokens of a bin.

    Returns:
        For each bin the sample numbers, ascending; bins are ordered by their first sample.

    Raises:
        ConfigError: a sample is longer than a bin.
    """
    bins: list[list[int]] = []
    open_bins: defaultdict[int, list[int]] = defaultdict(list)
    # Bins are found by the room they have left. There are at most `capacity` different values,
    # so the sorted list stays short however many bins there are.
    rooms: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        if length > capacity:
            raise ConfigError(
                f"packing: sample {index} has {length} tokens, a packed row holds {capacity}; "
                "raise max_length or cut the sample"
            )
        at = bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            number = open_bins[room].pop()
            if not open_bins[room]:
                del rooms[at]
        else:
            room, number = capacity, len(bins)
            bins.append([])
        bins[number].append(index)
        left = room - length
        if not open_bins[left]:
            insort(rooms, left)
        open_bins[left].append(number)
    return sorted(sorted(members) for members in bins)
