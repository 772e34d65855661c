"""The finaliser of SplitMix64: numbers that look drawn at random, each a function of one number.

In: numbers that differ, such as a counter or words of digests. Out: 64 bits of each. (Steele, Lea
and Flood, "Fast splittable pseudorandom number generators", 2014.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GAMMA = 0x9E3779B97F4A7C15
"""What the counter of a stream grows by."""


def mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each number mixed, elementwise; products go around."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
