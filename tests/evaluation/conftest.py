"""Loaded models of the family, and dense distributions of them, row by row in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Family
from torch import Tensor
from transformers import AutoModelForCausalLM

from cachekd.evaluation.scores import Side
from cachekd.types import Int32

Dense = Callable[[Side, Int32], Tensor]


def side_of(path: Path, name: str, vocab: int) -> Side:
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    return Side.of(name, model, vocab)


@pytest.fixture(scope="session")
def student(family: Family) -> Side:
    return side_of(family.student, "the student", family.vocab)


@pytest.fixture(scope="session")
def teacher(family: Family) -> Side:
    return side_of(family.teacher, "the teacher", family.vocab)


@pytest.fixture(scope="session")
def dense() -> Dense:
    """Log-probabilities of one document alone, unpadded, [L, V] float64."""

    def read(side: Side, ids: Int32) -> Tensor:
        with torch.no_grad():
            logits: Any = side.model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
        return torch.log_softmax(logits[:, : side.vocab_size].double(), -1)

    return read


def documents(vocab: int, lengths: tuple[int, ...], seed: int = 0) -> list[Int32]:
    """Random token ids."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, vocab, length).astype(np.int32) for length in lengths]
