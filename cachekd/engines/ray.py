"""The Ray engine: actors on the nodes of a cluster, each with one warm teacher.

Only samples and a plan travel to an actor, and nothing comes back: it writes into the cache itself.
A unit whose actor or node dies is given to another one; a unit that fails on its own account is
tried again a few times and then named, while all others are committed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cachekd.config import PrecomputeConfig
from cachekd.engines import Crew, Kit, Orders, Outcome
from cachekd.engines._actors import PLACED_SECONDS, Actors, Slot, no_place, plain
from cachekd.engines._claims import POLL_SECONDS
from cachekd.engines._cluster import connected, ray_module, room
from cachekd.engines._round import Round
from cachekd.errors import ConfigError, Incomplete
from cachekd.store.io import Location


class RayCrew:
    """See `cachekd.engines.Crew`.

    Args:
        actors: who does the work.
        kit: makes what they are sent.
        retries: tries of a unit beyond the first.
    """

    def __init__(self, actors: Actors, kit: Kit, retries: int) -> None:
        self._actors, self._kit, self._retries = actors, kit, retries

    def try_teacher(self, job: Any) -> Any:
        """See `Crew`; one actor tries, the others load their teachers meanwhile."""
        units = self._kit.first_units(job)
        if not units:
            return self._kit.learned(job, None)
        ray, (first, *others) = self._actors.ray, self._actors.slots
        opening = ray.put(self._kit.opening(job))
        samples = ray.put(self._kit.samples(job, units))
        for slot in others:
            slot.actor.load.remote(opening)  # what goes wrong, `begin` says again
        while True:
            ref = first.actor.try_teacher.remote(opening, samples, units)
            self._await(ref, first)
            try:
                return self._kit.learned(job, ray.get(ref))
            except Exception as error:  # whatever a teacher raises
                if not self._actors.died(error):
                    raise plain(error) from error
                self._actors.replace(first, error)

    def run(self, job: Any, orders: Orders) -> Outcome:
        """See `Crew`."""
        return Round(self._actors, self._kit, job, orders, self._retries).run()

    def _await(self, ref: Any, slot: Slot) -> None:
        """Wait for an answer.

        Raises:
            Incomplete: a stop was asked for meanwhile.
            WorkerError: the actor finds no place.
        """
        since = time.monotonic()
        while not self._actors.ray.wait([ref], timeout=POLL_SECONDS)[0]:
            if self._kit.stop_asked():
                raise Incomplete("stopped in the first batches")
            if time.monotonic() - since > PLACED_SECONDS and not self._actors.is_placed(slot):
                raise no_place()


class RayEngine:
    """Actors do the units; the process that runs the command gives them out."""

    patience: float | None = None  # units in hand are finished
    divides = False

    def __init__(self, config: PrecomputeConfig) -> None:
        ray_module()
        if not _is_text(config.teacher):
            raise ConfigError(
                "engine ray: expected a teacher as a folder or a hub id, which every actor loads; "
                f"found a {type(config.teacher).__name__}, which lives in this process alone"
            )
        if config.backend.startswith("__main__"):
            raise ConfigError(
                f"engine ray: actors cannot import {config.backend}; put it into a module"
            )
        if Location(config.cache).private:
            raise ConfigError(
                f"engine ray: actors do not see {config.cache}; use a folder or URL that all see"
            )
        if config.generate != "none":
            raise ConfigError(
                "engine ray scores and does not write: run --generate with --engine local, which "
                "torchrun or a Slurm array divide"
            )
        self._config = config

    @contextmanager
    def crew(self, kit: Kit) -> Iterator[Crew]:
        """See `Engine`."""
        config = self._config
        with connected(config) as ray:
            found = room(ray, config, kit.threads(), kit.units())
            actors = Actors(ray, found, kit.maker())
            try:
                yield RayCrew(actors, kit, config.ray_retries)
            finally:
                actors.close()


def _is_text(value: object) -> bool:
    return isinstance(value, str)


PLUGIN = RayEngine
