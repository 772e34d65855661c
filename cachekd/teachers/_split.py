"""A teacher split over the processes of torchrun (tensor parallelism): one leads, all compute.

Rank 0 runs the command as if it were alone. What it asks of its teacher is told to the others
before it is computed, so that all of them make the same calls in the same order; what they find is
the same and is dropped. Comes in: a loaded model that transformers has split. Goes out: a teacher.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from cachekd.config import PrecomputeConfig
from cachekd.errors import ConfigError, TeacherError
from cachekd.plugins import find
from cachekd.teachers import Selection, Teacher, TeacherBackend
from cachekd.teachers._loading import own_device
from cachekd.types import Int32, TopKLogits

_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_LOAD = "load"
_PATIENCE = timedelta(days=7)  # the leader may prepare data, or wait for its writers


def check_launched(config: PrecomputeConfig) -> None:
    """Refuse to split a teacher where torchrun did not start this process.

    Raises:
        ConfigError: says how.
    """
    missing = [name for name in _NEEDED if not os.environ.get(name, "")]
    if missing:
        raise ConfigError(
            f"tp_plan {config.tp_plan}: expected to be started by torchrun (torchrun "
            f"--nproc-per-node 2 -m cachekd_cli precompute ...); {missing[0]} is not set"
        )


@contextmanager
def joined() -> Iterator[int]:
    """Within, the processes of torchrun are one group; this one's rank. At the end rank 0 lets go.

    A process is bound to its GPU first, if there are any.
    """
    import torch.distributed as dist

    cuda = own_device() != "cpu"
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
    try:
        yield dist.get_rank()
    finally:
        with suppress(RuntimeError):  # of others that have ended already
            if dist.get_rank() == 0:
                _tell(None)
        dist.destroy_process_group()


class LeadingTeacher:
    """The teacher of rank 0: every call is told to the others first.

    Args:
        load: loads its share of the teacher; the others load theirs at the same time.
    """

    def __init__(self, load: Callable[[], Teacher]) -> None:
        _tell(_LOAD)
        self._teacher = load()

    @property
    def numerics(self) -> Mapping[str, Any]:
        """Those of its share, and over how many processes it is split."""
        import torch.distributed as dist

        return {**self._teacher.numerics, "tensor_parallel": dist.get_world_size()}

    def score(
        self,
        documents: Sequence[Int32],
        padded_length: int,
        selection: Selection,
        wanted: Sequence[Any],
        given: Sequence[Int32 | None] | None = None,
    ) -> list[TopKLogits]:
        """See `cachekd.teachers.Teacher.score`."""
        _tell((documents, padded_length, selection, wanted, given))
        return self._teacher.score(documents, padded_length, selection, wanted, given)


def follow(config: PrecomputeConfig, threads: int) -> int:
    """Compute what the leader asks for, until it lets go; how many batches that were.

    Raises:
        TeacherError: the teacher cannot be loaded.
    """
    if _tell(None) != _LOAD:
        return 0  # there was nothing to do
    backend: TeacherBackend = find("teachers", config.backend)
    teacher, batches = backend.load(config, backend.identify(config), threads), 0
    while (call := _tell(None)) is not None:
        batches += 1
        try:
            teacher.score(*call)
        except (MemoryError, TeacherError):  # the leader meets it too, and says what follows
            continue
    return batches


def _tell(call: Any) -> Any:
    """What rank 0 says, at every rank."""
    import torch.distributed as dist

    held = [call]
    dist.broadcast_object_list(held, src=0, device=_cpu())
    return held[0]


def _cpu() -> Any:
    import torch

    return torch.device("cpu")
