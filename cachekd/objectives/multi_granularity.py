"""The total loss of "Multi-Granularity Semantic Revision for Large Language Model Distillation".

Eq. 11, on text of the student that the teacher has corrected (SCRG, section 4.1):

    loss = sft * CE  on the data's own responses
         + dac_kl * DAC-KL  +  span * L_span  on the student's corrected ones

Each mean is over its own rows. The terms are the objectives sft, dac_kl and span; windows are in
the space of log-ranks. For the paper's ablations (Tables 2 and 3c) a term may be left out, and
another divergence take the place of DAC-KL. A batch that does not say who wrote it (a cache, or
held-out samples) serves all terms, as in ``--objective sum``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from cachekd.config import check_choices, option
from cachekd.objectives import Needs, build
from cachekd.objectives._rollouts import RolloutOptions, Share
from cachekd.objectives._soft import check_terms
from cachekd.objectives._student_text import sampled_by
from cachekd.objectives._terms import Term
from cachekd.objectives.sum import Sum

if TYPE_CHECKING:
    from cachekd.types import TargetTensors

_TERMS = ("sft", "dac_kl", "span")
_PLAIN: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **{name: (name, {}) for name in ("kd", "reverse_kl", "symmetric", "jsd", "tvd")},
    "skew_kl": ("skew", {"direction": "forward"}),
    "skew_reverse_kl": ("skew", {"direction": "reverse"}),
}
"""Other divergences by the name of their term: objective and options."""
_KNOWN = (*_TERMS, *_PLAIN)
_WINDOW = ("temperature", "combine", "tau", "guard", "coverage", "inputs", "hidden")


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiGranularityOptions(RolloutOptions):
    """Options of ``--objective multi_granularity``."""

    scrg: int = option(
        1,
        "Corrections of each sequence by the teacher, with what follows written anew (SCRG); 0: "
        "none.",
        group="Rollouts",
    )
    loss: Mapping[str, float] = option(
        dict.fromkeys(_TERMS, 1.0),
        "Weights of the terms, as sft=1 dac_kl=1 span=1; a term left out counts 0. Other "
        f"divergences in the place of dac_kl: {', '.join(_PLAIN)}.",
        group="Objective",
    )
    chunker: str = option(
        "phrases", "How a response is cut into phrases; see --objective span.", group="Objective"
    )
    temperature: float = option(1.0, "Temperature of the divergence.", group="Objective")
    combine: str = option(
        "tail",
        "What DAC-KL compares. tail: masked masses and one class for all the rest; sum: masked "
        "masses alone; renorm: masked masses over their sum.",
        choices=("tail", "sum", "renorm"),
        group="Objective",
    )
    tau: float = option(0.05, "Softness of the window's edges.", group="Objective")
    guard: float = option(
        20.0, "Weight of the penalty on missing coverage; 0 for none.", group="Objective"
    )
    coverage: float = option(
        0.95, "Teacher mass that the window should hold, 0 to 1.", group="Objective"
    )
    inputs: int = option(64, "Classes that the sub-network sees.", group="Objective")
    hidden: int = option(128, "Width of the sub-network.", group="Objective")

    def __post_init__(self) -> None:
        check_choices(self)
        RolloutOptions.__post_init__(self)
        check_terms(self.loss, _KNOWN)
        _terms(self)


class MultiGranularity(Sum):
    """Three objectives, each on its part of a batch."""

    Options: ClassVar[type] = MultiGranularityOptions

    def __init__(self, options: Any) -> None:
        self.options = options
        self.terms = _terms(options)
        self._learned = None

    def needs(self) -> Needs:
        """What the terms need, and text of both parts."""
        gold = "text" if self.options.loss.get("sft") else "none"
        return replace(super().needs(), rollouts=sampled_by(self.options, Share(), gold=gold))

    def prepare(self, targets: TargetTensors, vocab_size: int) -> TargetTensors:
        """The targets, and beside them those of each term, weighed for its part."""
        from cachekd.losses.terms import joined

        prepared = {
            term.name: term.objective.prepare(_of_part(targets, term.name), vocab_size)
            for term in self.terms
        }
        return joined(targets, prepared)


def _terms(options: Any) -> tuple[Term, ...]:
    """The terms that have a weight.

    Raises:
        ConfigError: an option of a term cannot be used.
    """
    given: Mapping[str, Mapping[str, Any]] = {
        "sft": {},
        "dac_kl": {name: getattr(options, name) for name in _WINDOW},
        "span": {"chunker": options.chunker},
    }
    plain = {"temperature": options.temperature, "loss": {"kd": 1.0}}
    built = {name: (name, given[name]) for name in _TERMS} | {
        name: (objective, {**plain, **own}) for name, (objective, own) in _PLAIN.items()
    }
    return tuple(
        Term(name=name, weight=float(options.loss[name]), objective=build(*built[name]))
        for name in _KNOWN
        if options.loss.get(name)
    )


def _of_part(targets: TargetTensors, name: str) -> TargetTensors:
    """Targets whose weights, and factors of pairs, are those of the part that a term is of."""
    if "student_text" not in targets:
        return targets
    written_N = targets["student_text"]
    own_N = ~written_N if name == "sft" else written_N
    if "part_scale" in targets:
        own_N = own_N * targets["part_scale"]
    part: TargetTensors = {**targets, "weights": targets["weights"] * own_N}
    if "span_factor" in targets:
        part["span_factor"] = targets["span_factor"] * own_N
    return part


PLUGIN = MultiGranularity
