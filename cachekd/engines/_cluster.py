"""A Ray cluster: reached or started, and how many actors it has room for.

Comes in: settings. Goes out: a connection that is ended again where this process made it, and the
resources of an actor. Ray is imported here alone, when it is asked for.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from cachekd.config import PrecomputeConfig
from cachekd.errors import ConfigError, WorkerError

_REACH_SECONDS = 5.0
_KINDS = ("CPU", "GPU")


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What an actor takes, and how many actors there are to be."""

    cpus: int
    gpus: float
    actors: int


def ray_module() -> Any:
    """Ray, if it is installed.

    Raises:
        ConfigError: it is not.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        import ray
    except ImportError as error:
        raise ConfigError("ray is not installed; run: pip install 'cachekd[ray]'") from error
    return ray


@contextmanager
def connected(config: PrecomputeConfig) -> Iterator[Any]:
    """Within, Ray is connected; a connection that there was before stays.

    Raises:
        ConfigError: the address is none of a cluster's.
        WorkerError: no cluster answers, or it is none that this Ray can use.
    """
    ray = ray_module()
    if ray.is_initialized():
        yield ray
        return
    _reach(config.ray_address, os.environ.get("RAY_ADDRESS"))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=config.ray_address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise WorkerError(
            f"the Ray cluster {config.ray_address or 'of this machine'} cannot be used: {error}"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray takes it for itself
    try:
        yield ray
    finally:
        ray.shutdown()


def room(ray: Any, config: PrecomputeConfig, threads: int, units: int) -> Room:
    """What an actor takes, and how many fit on the nodes that are alive: at most one a unit.

    Raises:
        ConfigError: no node has room for one.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = {kind: max((node.get(kind, 0.0) for node in nodes), default=0.0) for kind in _KINDS}
    gpus = config.ray_gpus_per_actor
    if gpus is None:
        gpus = 1.0 if most["GPU"] else 0.0
    cpus = config.ray_cpus_per_actor
    if cpus is None:
        cpus = 1 if gpus else max(1, min(threads, int(most["CPU"])))
    fit = sum(_fit(node, cpus, gpus) for node in nodes)
    if not fit:
        raise ConfigError(
            f"no node of the Ray cluster has room for an actor of {cpus} CPUs and {gpus:g} GPUs: "
            f"the largest has {most['CPU']:g} CPUs and {most['GPU']:g} GPUs. Lower "
            "--ray-cpus-per-actor or --ray-gpus-per-actor"
        )
    return Room(cpus=cpus, gpus=gpus, actors=min(config.ray_actors or fit, max(1, units)))


def _fit(node: dict[str, float], cpus: int, gpus: float) -> int:
    wanted = {"CPU": float(cpus), "GPU": gpus}
    counts = [int(node.get(kind, 0.0) / need) for kind, need in wanted.items() if need]
    return min(counts, default=1)


def _reach(given: str | None, variable: str | None = None) -> None:
    """Refuse an address at which nobody listens: Ray itself would try for a minute.

    Args:
        given: the address of the settings.
        variable: that of the environment, which Ray takes where no other is given.
    """
    own = given not in (None, "auto")
    name, address = ("ray_address", given) if own else ("RAY_ADDRESS", variable)
    if address in (None, "", "auto", "local"):
        return
    if "://" in address:  # Ray's client: all that is sent to actors would go through one server
        raise ConfigError(
            f"{name}: expected HOST:PORT of a cluster's head, or local; found {address!r}. Ray's "
            "client and its jobs are not used: run the command on a machine of the cluster"
        )
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal()):
        raise ConfigError(f"{name}: expected HOST:PORT, or local; found {address!r}")
    try:
        with suppress(TimeoutError), socket.create_connection((host, int(port)), _REACH_SECONDS):
            return
    except (OSError, OverflowError) as error:
        raise WorkerError(
            f"no Ray cluster answers at {address}: {error}. Start one (ray start --head), or leave "
            "--ray-address out for one of this machine"
        ) from error
    raise WorkerError(
        f"no Ray cluster answers at {address} within {_REACH_SECONDS:g} s; check the address"
    )
