"""The rollout store of a checkpoint: what an on-policy run needs to go on as if never stopped.

In: an `Engine`. Out: files of each process in the checkpoint's folder: rollouts that may be used
again, with the supports that depend on the student, and the state of schedule and counters. Where
the number of processes has changed, these are counted together, and a collection is shared out by
its prompts; what belongs to a process (its buffer, its orders of a collection) cannot be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cachekd.errors import ConfigError
from cachekd.rollouts import Rollout
from cachekd.rollouts.engine import Engine
from cachekd.rollouts.replay import load_rollouts, save_rollouts
from cachekd.store.io import Location

_PARTS = ("buffer", "collection")
_COUNTED = ("totals", "seconds", "written", "sums", "scores")
_FILE = re.compile(r"(?:rollouts|buffer|collection)_(\d+)\.(?:json|safetensors)")


def save_engine(engine: Engine, folder: Path, rank: int, processes: int) -> None:
    """Write the state of a process; the scores that it rests on are made durable first.

    Files of ranks that there are no more go: a run of more processes was here before.
    """
    engine.flush()
    place = Location(str(folder))
    for name, rollouts in engine.held().items():
        save_rollouts(rollouts, folder / f"{name}_{rank}.safetensors")
    text = json.dumps({"processes": processes, **engine.state()}, indent=1)
    place.replace(_name(rank), text.encode())
    for name in place.names() if rank == 0 else ():
        match = _FILE.fullmatch(name)
        if match and int(match[1]) >= processes:
            place.remove(name)


def load_engine(engine: Engine, folder: Path, rank: int, processes: int) -> None:
    """Go on from a checkpoint.

    Raises:
        ConfigError: it is none of an on-policy run, or of another number of processes whose
            rollouts belong to them.
        CorruptCache: a file of it is damaged.
    """
    path = folder / _name(rank)
    if not path.exists():
        path = folder / _name(0)
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        before = int(state["processes"])
        if before == processes:
            engine.restore(state, {part: _load(folder, part, rank) for part in _PARTS})
        else:
            _check_shared(engine, folder, before, processes)
            engine.restore(*_shared_out(engine, folder, rank, before))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"resume_from_checkpoint: {path} cannot be continued from ({error!r}). Continue with "
            "as many processes as before, or name another checkpoint"
        ) from error


def _check_shared(engine: Engine, folder: Path, before: int, now: int) -> None:
    """Refuse another number of processes where what they hold is theirs."""
    spec = engine.spec
    theirs = {
        "a replay buffer": bool(spec.replay),
        "an order of its own for each of the inner_epochs of a collection": spec.inner_epochs > 1,
    }
    for what, held in theirs.items():
        if held:
            raise ConfigError(
                f"resume_from_checkpoint: expected {before} processes, as {folder} was written "
                f"by; found {now}. Each process of this objective has {what}, which others cannot "
                f"go on with. Start {before} processes, or another run in another folder"
            )


def _shared_out(
    engine: Engine, folder: Path, rank: int, before: int
) -> tuple[Mapping[str, Any], Mapping[str, list[Rollout]]]:
    """What one of another number of processes goes on with; the first takes all that is counted."""
    states = [
        json.loads((folder / _name(number)).read_text(encoding="utf-8")) for number in range(before)
    ]
    counted = {name: _added([state[name] for state in states]) for name in _COUNTED}
    state = {**states[0], **(counted if rank == 0 else engine.state())}
    state |= {name: states[0][name] for name in ("schedule", "collected")}
    if not engine.spec.collect:  # of one batch, which is over; batches are numbered anew
        return state | {"collected": None}, {part: [] for part in _PARTS}
    found = [item for number in range(before) for item in _load(folder, "collection", number)]
    return state, {"buffer": [], "collection": found}


def _added(values: Sequence[Any]) -> Any:
    """Counters of several processes as one: numbers, and what holds them."""
    if isinstance(values[0], Mapping):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: _added([value[name] for value in values if name in value]) for name in names}
    if isinstance(values[0], list):
        return [sum(numbers) for numbers in zip(*values, strict=True)]
    return sum(values)


def _load(folder: Path, part: str, rank: int) -> list[Rollout]:
    return load_rollouts(folder / f"{part}_{rank}.safetensors")


def _name(rank: int) -> str:
    return f"rollouts_{rank}.json"
