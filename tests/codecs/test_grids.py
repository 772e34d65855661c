"""Grids: codes do not fall as probabilities fall, and stand for a value of their own bin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ragged import header

from cachekd.codecs._grids import Grid, scaled
from cachekd.errors import CorruptCache

STEPS = [1 / 240, 1 / 24, 0.3, 0.4, 1.0]
falling = st.lists(st.floats(-200, 0, width=32), min_size=1, max_size=40).map(
    lambda values: np.sort(np.float32(values))[::-1]
)


@given(falling, st.sampled_from(["float16", "float32", "sqrt", "log"]), st.sampled_from(STEPS))
def test_codes_rise_as_values_fall(logs: np.ndarray, values: str, step: float) -> None:
    grid = Grid(header(9, values, **({} if values.startswith("f") else {"step": step})))
    codes = grid.encode(logs)
    assert (np.diff(codes) >= 0).all() and codes.min() >= 0 and codes.max() < grid.sampled_code
    back = grid.decode(codes)
    assert (np.diff(back) <= 0).all() and (back <= 0).all()
    assert np.array_equal(grid.encode(back), codes), "a value stands in its own bin"
    if grid.exact:
        assert back.tobytes() == (0 + logs.astype(values).astype(np.float32)).tobytes()
    if values == "log":
        assert np.allclose(back, np.maximum(logs, -65_534 * step), atol=step * 0.501)


@pytest.mark.parametrize("step", STEPS)
def test_levels_of_roots_hold_the_mean_of_a_density_of_zipf(step: float) -> None:
    """Against a numerical integral of p^-2 over the bin of each level."""
    grid = Grid(header(9, step=step))
    levels = np.arange(1, grid.top_level + 1)
    found = np.exp(grid.decode(grid.top_level - levels).astype(np.float64))
    for level, value in zip(levels.tolist(), found.tolist(), strict=True):
        edges = np.geomspace(((level - 0.5) * step) ** 2, ((level + 0.5) * step) ** 2, 20_001)
        p, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
        mean = (p**-1 * width).sum() / (p**-2 * width).sum()
        assert abs(value / mean - 1) < 1e-5


@pytest.mark.parametrize("values", ["float16", "float32", "sqrt", "log"])
def test_values_beyond_a_grid_are_held_at_its_ends(values: str) -> None:
    grid = Grid(header(9, values))
    codes = grid.encode(np.float32([1e-6, 0.0, -0.0, -3e38, -np.inf]))
    assert codes[0] == codes[1] == codes[2] == 0 and codes[3] <= codes[4] < grid.sampled_code
    back = grid.decode(codes)
    assert np.isfinite(back).all() and (back[:3] == back[0]).all()
    assert values == "sqrt" or not np.signbit(back[0])


def test_heads_are_scaled_alike_however_their_runs_are_cut() -> None:
    rng = np.random.default_rng(0)
    grid = Grid(header(9))
    for _ in range(200):
        codes = np.sort(rng.integers(0, 24, 12))
        counts, tail = rng.integers(1, 90, 12), np.log(rng.uniform(1e-6, 0.9, 1)).astype(np.float32)
        row_x = np.zeros(12, np.int64)
        want = scaled(grid.decode(codes), codes, counts, row_x, tail)
        cut = np.repeat(np.arange(12), 1 + (counts > 1))
        parts = np.ones(len(cut), np.int64)
        parts[np.append(np.diff(cut) != 0, True)] = np.where(counts > 1, counts - 1, 1)
        found = scaled(grid.decode(codes[cut]), codes[cut], parts, row_x[:1].repeat(len(cut)), tail)
        assert found.tobytes() == want[cut].tobytes()
        assert abs((counts * np.exp(want.astype(float))).sum() + np.exp(tail[0]) - 1) < 1e-5


def test_a_tail_that_leaves_nothing_is_refused() -> None:
    one, zero = np.ones(1, np.int64), np.zeros(1, np.int64)
    with pytest.raises(CorruptCache, match="no mass"):
        scaled(np.zeros(1, np.float32), zero, one, zero, np.zeros(1, np.float32))
