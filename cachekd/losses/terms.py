"""Targets of several losses in one: what each prepared, beside those of the batch.

In: targets of a batch, and what losses made of them. Out: one set of targets, in which what a loss
changed is named ``loss/target``; it is cut into chunks of rows like any other, and may carry a
gradient. The student is read at the entries and next tokens of the batch, so these stay the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from cachekd.errors import ConfigError
from cachekd.losses.targets import NAMESPACE
from cachekd.types import TargetTensors

_OF_STUDENT = ("offsets", "ids", "next_ids")
_OF_ENTRIES = ("offsets", "ids", "logprobs", "entry_weights")


def joined(targets: TargetTensors, prepared: Mapping[str, TargetTensors]) -> TargetTensors:
    """Targets of a batch and of each loss.

    Args:
        targets: of the batch.
        prepared: by the name of a loss, what it made of them. One that left no entries reads none,
            and gets those of the batch.

    Raises:
        ConfigError: a loss wants the student at other entries or tokens.
    """
    base, result = cast(dict[str, Any], targets), dict(targets)
    shapes = dict(targets.get("shapes", {}))
    for loss, own in prepared.items():
        changed = {name: value for name, value in own.items() if value is not base.get(name)}
        gone = set(base) - set(own)
        if not len(own["ids"]):
            changed = {name: v for name, v in changed.items() if name not in _OF_ENTRIES}
            gone -= set(_OF_ENTRIES)
        for name in (*gone, *(name for name in changed if name in _OF_STUDENT)):
            raise ConfigError(
                f"objective sum: its term {loss} needs {name} of its own, while the student is "
                "read at those of all terms. Train on it alone"
            )
        for name, shape_V in cast(dict[str, Any], changed.pop("shapes", {})).items():
            if name in shapes and not torch.equal(shapes[name], shape_V):
                raise ConfigError(
                    f"objective sum: its terms have different shapes of a tail called {name!r}"
                )
            shapes[name] = shape_V
        result |= {f"{loss}{NAMESPACE}{name}": value for name, value in changed.items()}
    return cast(TargetTensors, {**result, "shapes": shapes} if shapes else result)


def of_term(targets: TargetTensors, loss: str) -> TargetTensors:
    """The targets that a loss prepared."""
    shared = {name: value for name, value in targets.items() if NAMESPACE not in name}
    own = {
        name.removeprefix(loss + NAMESPACE): value
        for name, value in targets.items()
        if name.startswith(loss + NAMESPACE)
    }
    return cast(TargetTensors, {**shared, **own})
