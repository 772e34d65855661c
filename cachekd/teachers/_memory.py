"""One kind of error when memory is short, whatever the device calls it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_memory_error() -> Iterator[None]:
    """Within, running out of memory is a `MemoryError`, on a CPU as on a GPU."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            raise MemoryError(str(error)) from error
        raise
