"""Settings of who does the work of ``cachekd precompute``: processes, or actors of a cluster."""

from __future__ import annotations

from dataclasses import dataclass, fields

from cachekd.config._fields import default_of, option
from cachekd.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where units run; none of it changes what is stored."""

    engine: str = option(
        "local",
        "Engine plugin: where units run. local: in every process that runs the command; ray: in "
        "actors of a Ray cluster.",
        group="Processes",
    )
    rank: int | None = option(
        None,
        "Number of this process among those that share the work; default: RANK (torchrun), or "
        "that of a Slurm array task or srun task.",
        group="Processes",
    )
    world_size: int | None = option(
        None, "How many processes share the work; 1: no other.", group="Processes"
    )
    take_over: bool = option(
        False,
        "After its own share a process also does what others have not committed, where no file "
        "locks tell who works on what (object stores).",
        group="Processes",
    )
    tp_plan: str | None = option(
        None,
        "Tensor parallel plan of transformers: all processes of torchrun hold one teacher "
        "together.",
        choices=("auto",),
        group="Processes",
    )
    ray_address: str | None = option(
        None,
        "Ray cluster, as HOST:PORT; local: one of this machine for the run alone. Default: "
        "RAY_ADDRESS, else a cluster that runs on this machine, else local.",
        group="Processes",
    )
    ray_actors: int | None = option(
        None,
        "Actors, one warm teacher each; default: as many as the cluster has room for.",
        group="Processes",
    )
    ray_cpus_per_actor: int | None = option(
        None,
        "CPUs of an actor; default: 1 beside a GPU, else the threads of the plan.",
        group="Processes",
    )
    ray_gpus_per_actor: float | None = option(
        None, "GPUs of an actor; default: 1 where the cluster has any.", group="Processes"
    )
    ray_retries: int = option(
        2, "How often a unit that failed, or whose actor died, is tried again.", group="Processes"
    )


def check_engine(config: EngineConfig) -> None:
    """Values in range, and no setting of another engine.

    Raises:
        ConfigError: names the field.
    """
    if (config.rank is None) != (config.world_size is None) and config.world_size != 1:
        raise ConfigError(
            f"rank {config.rank} with world_size {config.world_size}: give both, or neither"
        )
    if config.world_size is not None:
        check_rank(config.rank or 0, config.world_size, "rank and world_size")
    if config.engine != "ray":
        for item in fields(EngineConfig):
            if item.name.startswith("ray_") and getattr(config, item.name) != default_of(item):
                raise ConfigError(f"{item.name}: it belongs to engine ray; set --engine ray")
        return
    if (config.rank, config.world_size, config.tp_plan) != (None, None, None):
        raise ConfigError(
            "engine ray gives each unit to one of its actors; leave out rank, world_size and "
            "tp_plan"
        )
    for name, least in (("ray_actors", 1), ("ray_cpus_per_actor", 0), ("ray_retries", 0)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise ConfigError(f"{name}: expected {least} or more; found {value}")
    gpus = config.ray_gpus_per_actor
    if gpus is not None and not gpus >= 0:
        raise ConfigError(f"ray_gpus_per_actor: expected 0 or more; found {gpus}")


def check_rank(rank: int, world_size: int, source: str) -> None:
    """Refuse a process that is none of those that share the work.

    Raises:
        ConfigError: names what said so.
    """
    if world_size < 1 or not 0 <= rank < world_size:
        raise ConfigError(
            f"{source}: expected a rank from 0 to below the world size; found rank {rank} of "
            f"{world_size}"
        )
