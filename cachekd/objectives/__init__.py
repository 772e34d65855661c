"""Objectives: what is minimised. This folder holds plugins and nothing else, one file a method.

To add one, write ``cachekd/objectives/<name>.py`` with a class like `Objective` and the line
``PLUGIN = <class>``; ``--objective <name>`` finds it, and its options become flags and YAML keys.
Import torch inside functions: options must be readable without it. Helper modules start with ``_``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from cachekd.errors import ConfigError
from cachekd.plugins import find

if TYPE_CHECKING:
    from torch import nn

    from cachekd.losses.student import StudentRows
    from cachekd.objectives._rollouts import Rollouts
    from cachekd.types import ObjectiveOutput, TargetTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What an objective takes from a cache; checked before a model is loaded.

    Attributes:
        temperatures: temperatures whose log-normaliser must have been captured.
        kinds: kinds of target.
        one_teacher: all caches must hold targets of one source; an objective that routes or
            mixes teachers says False.
        sampled: whether sampled entries serve it: only what is linear in the teacher's p.
        unigram: whether it takes the teacher's mean distribution, which priors hold.
        full: whether heads must be the whole vocabulary.
        mass: teacher probability that heads must hold; 0 for any.
        next_known: whether it takes the teacher's log-probability of the actual next token, which
            some imports hold a bound of.
        dense: whether it reads whole logits of a chunk (`StudentRows.logits`).
        next_row: whether a row looks at the row after it; the last row of a chunk then comes again
            as the first of the next one, and counts once.
        attention: weight of the attention loss, 0 for none.
        routed: whether samples of a domain learn from the cache ``expert`` and others from
            ``reference``.
        start: name of the cache whose teacher must be the student as it starts.
        generated: whether the teacher must have written the responses.
        spans: chunker whose phrases it takes, or None.
        rollouts: what it asks of text that the student writes, or None; see
            `cachekd.objectives._rollouts`.
    """

    temperatures: tuple[float, ...] = ()
    kinds: tuple[str, ...] = ("logits",)
    one_teacher: bool = True
    sampled: bool = False
    unigram: bool = False
    full: bool = False
    mass: float = 0.0
    next_known: bool = False
    dense: bool = False
    next_row: bool = False
    attention: float = 0.0
    routed: bool = False
    start: str | None = None
    generated: bool = False
    spans: str | None = None
    rollouts: Rollouts | None = None


class Objective(Protocol):
    """A method of distillation.

    ``Options`` is a frozen slotted keyword-only dataclass with fields made by
    `cachekd.config.option`; an instance of it is the only constructor argument.
    """

    Options: ClassVar[type]

    def __init__(self, options: Any) -> None: ...

    def needs(self) -> Needs:
        """What must have been captured."""
        ...

    def learned(self, vocab_size: int = 0) -> nn.Module | None:
        """Parameters that are trained beside the student's, or None.

        The same module whenever it is asked for; equal ones in every process. A vocabulary of 0 is
        one that is not known yet.
        """
        ...

    def prepare(self, targets: TargetTensors, vocab_size: int) -> TargetTensors:
        """The targets of a whole batch, before it is taken apart in chunks of rows.

        What comes back may carry a gradient to `learned`.
        """
        ...

    def __call__(self, student: StudentRows, targets: TargetTensors) -> ObjectiveOutput:
        """Weighted sums over the rows of a chunk: what the student says of them, and targets.

        Gradients are taken of ``loss_sum`` by autograd; see `cachekd.losses.student.StudentRows`.
        """
        ...


def build(name: str, options: Mapping[str, Any]) -> Objective:
    """The objective of this name with these options, anything left out at its default.

    Raises:
        ConfigError: there is no such objective or option, or a value cannot be used.
    """
    plugin = find("objectives", name)
    known = [item.name for item in fields(plugin.Options)]
    for key in options:
        if key not in known:
            raise ConfigError(unknown(key, known, f"an option of objective {name!r}"))
    objective: Objective = plugin(plugin.Options(**options))
    return objective


def unknown(key: str, known: list[str], what: str) -> str:
    """Text for a key that does not exist: what is near, and what there is."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{key!r} is not {what}.{hint} Known: {', '.join(known)}"
