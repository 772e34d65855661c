"""What a launcher tells a process of its place on a machine, and engines that are not to hear it.

In: the environment of torchrun or Slurm. Out: the number of this process on its machine; for an
engine that has processes of its own, an environment with its devices and without the launcher.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_TORCHRUN = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"),
)


def own_number() -> int | None:
    """Which process of its machine this is, or None where no launcher says so."""
    number = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID")
    return int(number) if number is not None and number.isdecimal() else None


@contextmanager
def engine_environment(devices: int) -> Iterator[None]:
    """Within, an engine sees GPUs of its own, as many as it takes, and nothing of torchrun.

    What torchrun sets is for groups of its own processes: an engine that opens another would wait
    for a store that nobody serves. With fewer GPUs than the engines of a machine take, or where a
    process sees its own alone, they are gone through in turn, as `own_device` does.

    Args:
        devices: GPUs of one engine.
    """
    names = (_VISIBLE, *_TORCHRUN)
    before = {name: os.environ[name] for name in names if name in os.environ}
    chosen = _own_devices(devices)
    try:
        for name in _TORCHRUN:
            os.environ.pop(name, None)
        if chosen:
            os.environ[_VISIBLE] = ",".join(chosen)
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


def _own_devices(count: int) -> list[str]:
    """GPUs as CUDA_VISIBLE_DEVICES names them; none where nothing is to be chosen."""
    import torch

    number = own_number()
    if number is None or not torch.cuda.is_available():
        return []
    seen = torch.cuda.device_count()
    given = os.environ.get(_VISIBLE)
    names = given.split(",")[:seen] if given else list(map(str, range(seen)))
    groups = len(names) // count
    if not groups:
        return []  # the engine says what it lacks
    start = number % groups * count
    return names[start : start + count]
