"""Teachers that fall ill: rows of logits that are no distribution, and memory that runs out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cachekd.teachers import _assembly, _selection

BAD_ROWS: dict[str, Callable[[Tensor], None]] = {
    "nan": lambda row_V: row_V.__setitem__(len(row_V) // 2, float("nan")),
    "all nan": lambda row_V: row_V.fill_(float("nan")),
    "+inf": lambda row_V: row_V.__setitem__(0, float("inf")),
    "all -inf": lambda row_V: row_V.fill_(float("-inf")),
}
SHORT: dict[str, Callable[[], Exception]] = {
    "host": lambda: MemoryError("injected"),
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "allocator": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
}


class Sickness:
    """Makes rows of logits bad: those that ``chooses`` picks of all rows that are selected.

    Attributes:
        seen: rows that were selected.
        made: how many of them were made bad.
    """

    def __init__(self, chooses: Callable[[int, Tensor], bool], kind: str = "nan") -> None:
        self._chooses, self._kind = chooses, kind
        self.seen = self.made = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Between the teacher and the selection, of every backend in this process."""
        pick = _selection.pick

        def sick(logits_NV: Tensor, *args: Any) -> Any:
            logits_NV = logits_NV.clone()
            for row_V in logits_NV:
                if self._chooses(self.seen, row_V):
                    BAD_ROWS[self._kind](row_V)
                    self.made += 1
                self.seen += 1
            return pick(logits_NV, *args)

        monkeypatch.setattr(_selection, "pick", sick)
        monkeypatch.setattr(_assembly, "pick", sick)


def share(percent: float) -> Callable[[int, Tensor], bool]:
    """Rows by what they hold: the same ones whatever order and shape they come in."""

    def chooses(_: int, row_V: Tensor) -> bool:
        rounded = np.round(row_V.double().numpy(), 2)
        return random.Random(rounded.tobytes()).random() < percent / 100

    return chooses


def number(wanted: int) -> Callable[[int, Tensor], bool]:
    """The row of this number of all that are selected."""
    return lambda seen, _: seen == wanted


def short_of_memory(
    call: Callable[..., Any], share: float, seed: int, kind: str, tries: list[tuple[int, bool]]
) -> Callable[..., Any]:
    """A method whose calls fail at random: how many items each had, and whether it failed."""
    draws = random.Random(seed)

    def shaky(self: Any, items: Sequence[Any], *args: Any) -> Any:
        fails = draws.random() < share
        tries.append((len(items), fails))
        if fails:
            raise SHORT[kind]()
        return call(self, items, *args)

    return shaky
