"""DAC-KL: forward KL within a window of the teacher's distribution that a sub-network chooses.

"Multi-Granularity Semantic Revision for Large Language Model Distillation", section 4.2, Eq. 6-8.

    loss = ce * CE  +  kd * T^2 * (D(p, q; window(p, q))  +  guard * max(0, least - coverage)^2)

The arithmetic is in `cachekd.losses.clipping`, the sub-network in `cachekd.losses.window`; it is
trained with the student, through the mask: as a function of the window the loss of the paper has
its minimum where the window holds least that differs, so that without the guard, a penalty on
teacher mass that the window leaves out, it closes around the most probable class or leaves the head
for the tail. Windows are in the space of log-ranks unless asked otherwise: the printed form
compares quantile levels with probabilities, where the gradient is 0 in float32 for nearly all rows,
and quantiles of the row take the whole vocabulary. With a head of k entries a window that reaches
beyond rank k ends there; what is outside counts as one class (``tail``) or not at all.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cachekd.config import option
from cachekd.errors import ConfigError
from cachekd.objectives import Needs
from cachekd.objectives._soft import SoftObjective, SoftOptions
from cachekd.objectives._sums import summed

if TYPE_CHECKING:
    from torch import Tensor

    from cachekd.losses.paired import Paired
    from cachekd.losses.student import StudentRows
    from cachekd.losses.window import WindowNet
    from cachekd.types import ObjectiveOutput, TargetTensors

_log = logging.getLogger(__name__)
_LARGE = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DACKLOptions(SoftOptions):
    """Options of ``--objective dac_kl``."""

    space: str = option(
        "logrank",
        "What the limits of the window mean. logrank: log(rank) / log V, 0 the most probable; "
        "quantile: levels of the row's quantile function (takes whole distributions); value: "
        "probabilities, as printed, which trains nothing and is there to be compared with.",
        choices=("logrank", "quantile", "value"),
        group="Objective",
    )
    combine: str = option(
        "tail",
        "What is compared. tail: masked masses and one class for all the rest; sum: masked masses "
        "alone; renorm: masked masses over their sum; literal: as printed (space value).",
        choices=("tail", "sum", "renorm", "literal"),
        group="Objective",
    )
    tau: float = option(0.05, "logrank: softness of the window's edges.", group="Objective")
    guard: float = option(
        20.0, "Weight of the penalty on missing coverage; 0 for none.", group="Objective"
    )
    coverage: float = option(
        0.95, "Teacher mass that the window should hold, 0 to 1.", group="Objective"
    )
    input: str = option(
        "compact",
        "What the sub-network sees. compact: both sides at the best classes, entropies and tails; "
        "full: p, p sorted and q over the vocabulary (takes whole distributions, and 3 V x hidden "
        "weights).",
        choices=("compact", "full"),
        group="Objective",
    )
    inputs: int = option(64, "compact: classes that the sub-network sees.", group="Objective")
    hidden: int = option(128, "Width of the sub-network.", group="Objective")
    loss: Mapping[str, float] = option(
        {"kd": 1.0},
        "Weights of cross entropy and divergence, as ce=0.1 kd=0.9; a term left out counts 0.",
        group="Objective",
    )

    def __post_init__(self) -> None:
        SoftOptions.__post_init__(self)
        for name in ("tau", "inputs", "hidden"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected above 0; found {getattr(self, name)}")
        if not 0 <= self.guard < float("inf"):
            raise ConfigError(f"guard: expected a number >= 0; found {self.guard}")
        if not 0 <= self.coverage <= 1:
            raise ConfigError(f"coverage: expected 0 to 1; found {self.coverage}")
        if self.combine == "literal" and self.space != "value":
            raise ConfigError(
                f"combine literal is the printed equation, in space value; found space "
                f"{self.space!r}. Set --space value, or combine tail, sum or renorm"
            )


class DACKL(SoftObjective):
    """See the module's text."""

    Options: ClassVar[type] = DACKLOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._net: WindowNet | None = None
        self._vocab = 0

    def needs(self) -> Needs:
        """Exact heads; whole distributions for quantiles and for the full input."""
        full = self.options.space == "quantile" or self.options.input == "full"
        return Needs(temperatures=(self.temperature,), full=full)

    def learned(self, vocab_size: int = 0) -> WindowNet:
        """The sub-network.

        Raises:
            ConfigError: its input is the full one, as wide as the vocabulary, which is not known.
        """
        from cachekd.losses.window import WindowNet, compact_width

        self._vocab = vocab_size or self._vocab
        if self._net is not None:
            return self._net
        width = compact_width(self.options.inputs)
        if self.options.input == "full":
            if not self._vocab:
                raise ConfigError(
                    "input full: the sub-network is as wide as the vocabulary, which is not known "
                    "yet: call learned(vocab_size), or use --input compact"
                )
            width = 3 * self._vocab
            if width * self.options.hidden > _LARGE:
                _log.warning(
                    "input full: the sub-network has %.1f M weights, and %.2f MB of inputs a "
                    "row; --input compact has %.2f M",
                    width * self.options.hidden / 1e6,
                    4 * width / 1e6,
                    compact_width(self.options.inputs) * self.options.hidden / 1e6,
                )
        self._net = WindowNet(width, self.options.hidden)
        return self._net

    def prepare(self, targets: TargetTensors, vocab_size: int) -> TargetTensors:
        """The same targets; the vocabulary is what ranks are measured by."""
        self._vocab = vocab_size
        return targets

    def __call__(self, student: StudentRows, targets: TargetTensors) -> ObjectiveOutput:
        """Weighted sums over some rows.

        Returns:
            Metrics: ``dac_kl``, the divergence within the window without T^2; ``ce``; ``tail_mass``
            of the student; ``coverage``, teacher mass within the window; ``window_upper`` and
            ``window_lower``; ``window_size``, the sum of its mask in classes; ``guard``, the
            penalty with its weight.
        """
        from cachekd.losses.clipping import coverage, coverage_penalty, window_kl
        from cachekd.losses.paired import paired, ranks
        from cachekd.losses.ragged import segment_sum

        sides = paired(student, targets, self.temperature)
        rank_n = ranks(sides.log_p_n, targets["offsets"])
        upper_R, lower_R = self.learned()(self._inputs(sides, targets, rank_n))
        mask_n = self._mask(sides, targets, rank_n, upper_R, lower_R)
        kl_R = window_kl(sides, mask_n, self.options.combine, rank_n == 1)
        held_n = mask_n.masked_fill(rank_n == 1, 1.0)
        covered_R = coverage(sides, held_n)
        missing_R = coverage_penalty(covered_R, sides.tail_R, float(self.options.coverage))
        guard_R = float(self.options.guard) * missing_R
        ce_R = -student.next_log_q()
        terms = [(self.kd * self.temperature**2, kl_R + guard_R), (self.ce, ce_R)]
        metrics = {
            "dac_kl": kl_R,
            "ce": ce_R,
            "tail_mass": sides.rest_R.exp(),
            "coverage": covered_R,
            "window_upper": upper_R,
            "window_lower": lower_R,
            "window_size": segment_sum(held_n, sides.row_n, len(ce_R)),
            "guard": guard_R,
        }
        return summed(targets, terms, metrics)

    def _inputs(self, sides: Paired, targets: TargetTensors, rank_n: Tensor) -> Tensor:
        from cachekd.losses.window import compact_inputs, full_inputs

        if self.options.input == "full":
            return full_inputs(sides, targets, self._vocab)
        return compact_inputs(sides, targets, rank_n, self._vocab, self.options.inputs)

    def _mask(
        self,
        sides: Paired,
        targets: TargetTensors,
        rank_n: Tensor,
        upper_R: Tensor,
        lower_R: Tensor,
    ) -> Tensor:
        from cachekd.losses.clipping import logrank_mask, quantile_mask, value_mask

        row_n = sides.row_n
        if self.options.space == "quantile":
            return quantile_mask(sides, targets["offsets"], self._vocab, upper_R, lower_R)
        upper_n, lower_n = upper_R[row_n], lower_R[row_n]
        if self.options.space == "value":
            return value_mask(sides.log_p_n.exp(), upper_n, lower_n)
        return logrank_mask(rank_n, self._vocab, upper_n, lower_n, float(self.options.tau))


PLUGIN = DACKL
