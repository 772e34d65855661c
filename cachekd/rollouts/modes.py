"""Modes of a model that is trained and, in between, only asked. In: a model. Out: the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """Within, the model is in eval mode and nothing is differentiated."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
