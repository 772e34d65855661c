"""The rollout store of a checkpoint: what an on-policy run needs to go on as if never stopped.

In: an `Engine`. Out: files of each process in the checkpoint's folder: rollouts that may be used
again, with the supports that depend on the student, and the state of schedule and counters.
"""

from __future__ import annotations

import json
from pathlib import Path

from cachekd.errors import ConfigError
from cachekd.rollouts.engine import Engine
from cachekd.rollouts.replay import load_rollouts, save_rollouts
from cachekd.store.io import Location

_PARTS = ("buffer", "collection")


def save_engine(engine: Engine, folder: Path, rank: int) -> None:
    """Write the state of a process; the scores that it rests on are made durable first."""
    engine.flush()
    for name, rollouts in engine.held().items():
        save_rollouts(rollouts, folder / f"{name}_{rank}.safetensors")
    text = json.dumps(engine.state(), indent=1)
    Location(str(folder)).replace(_name(rank), text.encode())


def load_engine(engine: Engine, folder: Path, rank: int) -> None:
    """Go on from a checkpoint.

    Raises:
        ConfigError: it is none of an on-policy run, or of another number of processes.
        CorruptCache: a file of it is damaged.
    """
    path = folder / _name(rank)
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        held = {name: load_rollouts(folder / f"{name}_{rank}.safetensors") for name in _PARTS}
        engine.restore(state, held)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"resume_from_checkpoint: {path} cannot be continued from ({error!r}). Continue with "
            "as many processes as before, or name another checkpoint"
        ) from error


def _name(rank: int) -> str:
    return f"rollouts_{rank}.json"
