"""Fixtures of the training tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Threads only wait for each other on tensors this small; a capture may have set another."""
    torch.set_num_threads(1)
