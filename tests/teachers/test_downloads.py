"""Tiles from a GPU: the same arrays as without a side stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cachekd.teachers import Selection
from cachekd.teachers._assembly import select
from cachekd.teachers._downloads import Downloads
from cachekd.teachers._selection import Workspace, pick


def tiles_of(device: torch.device) -> None:
    """Three tiles through `Downloads`, each as `select` gives it on a CPU."""
    kept = Selection(k=8, p=0.9, min_k=1, vocab_size=500, temperatures=(2.0,))
    rng, downloads, work = np.random.default_rng(0), Downloads(device, kept), Workspace()
    logits = [torch.from_numpy(rng.normal(0, 3, (n, 500)).astype(np.float32)) for n in (4, 9, 2)]
    for part in logits:
        rows = torch.zeros(len(part), dtype=torch.long, device=device)
        downloads.add(pick(part.to(device), rows, None, kept, work))
    for part, tile in zip(logits, downloads.finish(), strict=True):
        want = select(part, torch.zeros(len(part), dtype=torch.long), kept)
        assert tile.ids.tolist() == want.ids.tolist()
        np.testing.assert_allclose(tile.scalars, want.scalars, atol=1e-5)


def test_tiles_arrive_in_order() -> None:
    """The workspace is used again by each tile: nothing of a result may lie in it."""
    tiles_of(torch.device("cpu"))


@pytest.mark.gpu
def test_tiles_arrive_in_order_from_a_gpu() -> None:
    tiles_of(torch.device("cuda"))
