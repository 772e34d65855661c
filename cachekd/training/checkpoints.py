"""Checkpoints that can be continued from: those that were written to their end.

In: the output folder of a run. Out: its newest whole checkpoint. A process that is killed while it
saves leaves a part of one; ``trainer_state.json`` is written last, so a folder without it, or with
a file that is cut, is passed over with a warning.
"""

from __future__ import annotations

import json
import logging
import re
import zipfile
from pathlib import Path

from cachekd.errors import ConfigError

logger = logging.getLogger(__name__)

STATE = "trainer_state.json"
_NUMBERED = re.compile(r"checkpoint-(\d+)")
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model_fsdp.bin",
)
_OPTIMIZER = ("optimizer.pt", "optimizer.bin")


def last_whole(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None where it has none."""
    found = [
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.is_dir() and (match := _NUMBERED.fullmatch(path.name))
    ]
    for _, path in sorted(found, reverse=True):
        lack = what_lacks(path)
        if lack is None:
            return path
        logger.warning("%s is passed over: %s. The one before it is taken", path, lack)
    logger.warning("%s holds no whole checkpoint yet: starting at step 0", folder)
    return None


def check_whole(checkpoint: Path) -> None:
    """Refuse a checkpoint that nothing can be continued from.

    Raises:
        ConfigError: says what it lacks.
    """
    lack = what_lacks(checkpoint)
    if lack is not None:
        raise ConfigError(
            f"resume_from_checkpoint: {checkpoint} cannot be continued from: {lack}. Name another "
            "checkpoint, or true for the newest whole one"
        )


def what_lacks(checkpoint: Path) -> str | None:
    """What keeps a checkpoint from being whole, or None."""
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["global_step"]
    except FileNotFoundError:
        return f"it was not written to its end: there is no {STATE}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{STATE} cannot be read ({error!r})"
    sharded = any(path.is_dir() for path in checkpoint.iterdir())  # of FSDP and DeepSpeed
    for kind, names in (("weights", _WEIGHTS), ("optimizer", _OPTIMIZER)):
        if not sharded and not any((checkpoint / name).is_file() for name in names):
            return f"it holds no {kind}: expected {' or '.join(names[:1])}"
    return next(filter(None, map(_damage, sorted(checkpoint.iterdir()))), None)


def _damage(path: Path) -> str | None:
    """What is wrong with a file, as far as can be told without reading all of it."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np"):
                return None
        except (SafetensorError, OSError) as error:
            return f"{path.name} cannot be read ({error})"
    if path.suffix in (".pt", ".pth") and not zipfile.is_zipfile(path):
        return f"{path.name} is cut or damaged"
    return None
