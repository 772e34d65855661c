"""Coins of a run: uniform numbers that are a function of seed and step, so nothing is to be saved.

In: a seed, a step and numbers of things. Out: 64 bits, or a number in [0, 1), of each. The same in
every process, and after a resume.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cachekd.data.splitmix import GAMMA, mixed
from cachekd.types import Int64


def coin(seed: int, step: int) -> float:
    """The coin of a step."""
    return float(coins(seed, step, np.zeros(1, np.int64))[0])


def coins(seed: int, step: int, numbers_P: Int64) -> NDArray[np.float64]:
    """A coin of a step for each of these numbers, float64 [P]."""
    return (bits(seed, step, numbers_P) >> np.uint64(11)).astype(np.float64) / 2.0**53


def bits(seed: int, step: int, numbers_P: Int64) -> NDArray[np.uint64]:
    """64 bits for each of these numbers, uint64 [P]."""
    key_1 = np.array([seed], np.int64).view(np.uint64)
    for part in (np.array([step], np.int64), numbers_P):
        key_1 = mixed(mixed(key_1 + np.uint64(GAMMA)) ^ part.astype(np.int64).view(np.uint64))
    return key_1
