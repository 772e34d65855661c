"""The block search against a stable sort: values and order of equal ones, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekd.teachers._topk import BLOCK, best_entries, searches_all_blocks

LOWEST = float(np.finfo(np.float32).min)


def search(values: np.ndarray, k: int, less: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    blocked = torch.from_numpy(values).view(len(values), -1, BLOCK)
    taken = torch.full((len(values),), less)
    best, ids = best_entries(blocked, blocked.amax(-1), taken, k)
    return best.numpy(), ids.numpy()


def by_sorting(values: np.ndarray, k: int, less: float) -> tuple[np.ndarray, np.ndarray]:
    values = values - np.float32(less)
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(values, order, axis=1), order


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.integers(1, 40),
    st.sampled_from([1, 2, 7, 100]),
    st.sampled_from(["distinct", "few values", "two values", "one value", "masked"]),
)
def test_the_search_is_a_stable_sort(seed: int, blocks: int, k: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 5, (3, blocks * BLOCK)).astype(np.float32)
    if kind == "few values":
        values = np.round(values)
    if kind == "two values":
        values = np.where(values > 8, np.float32(1), np.float32(-2))
    if kind == "one value":
        values[:] = -3.5
    if kind == "masked":
        values[values < 5] = LOWEST
    k = min(k, values.shape[1])
    for less in (0.0, 11.25):
        best, ids = search(values, k, less)
        want_best, want_ids = by_sorting(values, k, less)
        assert ids.tolist() == want_ids.tolist()
        assert best.tobytes() == (want_best + np.float32(0)).tobytes()  # -0 comes back as 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_vocabulary_with_the_ties_of_half_precision(dtype: torch.dtype) -> None:
    values = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (4, 2048 * BLOCK)))
    single = values.to(dtype).float().numpy()
    assert not searches_all_blocks(64, 2048) and searches_all_blocks(64, 128)
    best, ids = search(single, 64)
    want_best, want_ids = by_sorting(single, 64, 0.0)
    assert ids.tolist() == want_ids.tolist() and (best == want_best).all()
