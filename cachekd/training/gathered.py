"""The whole weights of a sharded student (FSDP2) in every process, for a time.

In: a model that accelerate has sharded. Out: the same model, which each process may then run as
often as it likes: nothing is sent meanwhile. That is what writing text takes, since no process
knows how many tokens the others write.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from cachekd.errors import ConfigError


def check_gathering() -> None:
    """Refuse a torch whose FSDP2 remembers what ran beside training.

    Raises:
        ConfigError: says which torch is needed.
    """
    if not hasattr(FSDPModule, "reset_iter_state"):
        raise ConfigError(
            "a student that is sharded and writes its own text needs FSDPModule.reset_iter_state: "
            f"expected torch 2.13 or later; found {torch.__version__}. Install it, or train with "
            "plain data parallelism"
        )


@contextmanager
def gathered(model: Any, *, reshard_after_forward: bool) -> Iterator[None]:
    """Within, every process holds all weights, in the dtype that they are run in.

    Every process must enter and leave. The model must have run once, by which FSDP finds its root,
    and its weights must not be changed within.

    Args:
        model: the root of what is sharded.
        reshard_after_forward: what it was sharded with, and has again afterwards.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        # Shards again, and forgets what ran: a backward gathers ahead by what ran before it, which
        # would differ between processes, and they would wait for each other without end.
        model.reset_iter_state()
        for part in parts:
            if part is not model:
                part.set_reshard_after_forward(reshard_after_forward, recurse=False)
        head = model.get_output_embeddings()
        if isinstance(
            head, FSDPModule
        ):  # backward begins where forward ended, as accelerate has it
            head.set_reshard_after_forward(False, recurse=False)
