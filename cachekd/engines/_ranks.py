"""Which share of the units is a process's own, where several run one command.

Comes in: settings, or what torchrun or Slurm put into the environment. Goes out: a `Share`. It says
where a process begins, never what a unit holds: units are the plan's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cachekd.config import EngineConfig, check_rank
from cachekd.errors import ConfigError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A process among those that share the work.

    Attributes:
        rank, world_size: its number, and how many there are.
        source: what says so.
    """

    rank: int = 0
    world_size: int = 1
    source: str = ""

    def owns(self, number: int) -> bool:
        """Whether a numbered piece of work is its own."""
        return number % self.world_size == self.rank

    def order(self, numbers: Iterable[int]) -> list[int]:
        """Its own first, then the last ones of the next rank and so on: processes meet late."""

        def place(number: int) -> tuple[int, int]:
            behind = (number - self.rank) % self.world_size
            return behind, -number if behind else number

        return sorted(numbers, key=place)


def share_of(config: EngineConfig, environment: Mapping[str, str]) -> Share:
    """The share of this process: settings, then torchrun's variables, then Slurm's; else all.

    Raises:
        ConfigError: variables that do not fit together, named.
    """
    if config.world_size is not None:
        return _share(config.rank or 0, config.world_size, "--rank and --world-size")
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return _from(environment, "RANK", "WORLD_SIZE")
    if "SLURM_ARRAY_TASK_ID" in environment:
        return _of_array(environment)
    if "SLURM_STEP_ID" in environment:  # else no srun: a batch script is alone with its variables
        return _from(environment, "SLURM_PROCID", "SLURM_NTASKS")
    return Share()


def tell(share: Share, own: int, every: int, *, locks: bool, takes_over: bool) -> None:
    """Log how the work is divided: variables may be set by something that means other work."""
    if share.world_size == 1:
        return
    rest = (
        "then what no other process has"
        if locks
        else "then what is not committed"
        if takes_over
        else "the others are left to their ranks, for no locks tell who works on what here"
    )
    _log.warning(
        "this is rank %d of %d by %s: %d of %d units are done first, %s (--world-size 1: no other "
        "process shares the work)",
        *(share.rank, share.world_size, share.source, own, every, rest),
    )


def _of_array(environment: Mapping[str, str]) -> Share:
    """A task of a Slurm array, and of the srun within it, if there is one."""
    names = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "COUNT")]
    task, least, count = (_number(environment, name) for name in names)
    step = _number(environment, "SLURM_ARRAY_TASK_STEP", 1)
    rank, rest = divmod(task - least, max(step, 1))
    if rest or not 0 <= rank < count:
        raise ConfigError(
            f"SLURM_ARRAY_TASK_ID {task}: expected evenly spaced array ids ({count} from {least} "
            "on), such as --array=0-7; or give --rank and --world-size"
        )
    inner = Share()
    if "SLURM_STEP_ID" in environment:
        inner = _from(environment, "SLURM_PROCID", "SLURM_NTASKS")
    return _share(
        rank * inner.world_size + inner.rank,
        count * inner.world_size,
        " and ".join(filter(None, [names[0], inner.source])),
    )


def _from(environment: Mapping[str, str], rank: str, world_size: str) -> Share:
    return _share(
        _number(environment, rank), _number(environment, world_size), f"{rank} and {world_size}"
    )


def _share(rank: int, world_size: int, source: str) -> Share:
    check_rank(rank, world_size, source)
    return Share(rank=rank, world_size=world_size, source=source)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        found = f"found {text!r}" if text is not None else "it is not set"
        raise ConfigError(
            f"the environment variable {name}: expected a whole number, as torchrun or Slurm sets "
            f"it; {found}. Unset its like, or give --rank and --world-size"
        ) from None
