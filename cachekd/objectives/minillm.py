"""MiniLLM: reverse KL of whole responses by policy gradient, on text that the student writes.

"MiniLLM: Knowledge Distillation of Large Language Models" (Gu et al., ICLR 2024), Algorithm 1. Of
rows that the student wrote, with rho, w and the clipped surrogate of `cachekd.losses.policy` and
advantages A of `cachekd.rollouts.returns`,

    loss = pg(A, rho)  +  single_step * w * KL(q || p)

KL(q || p) has the teacher's best tokens and the student's own (``support``) as outcomes, and one
for the rest. Text is drawn from a mixture of teacher and student. Of the data's own rows

    loss = lm_coef * ((1 - pt_kd_ratio) * CE  +  pt_kd_ratio * KL(p || q))

and both means are added. Where paper and released code differ the defaults follow the paper, but
for whitened and clipped advantages and PPO's pessimistic maximum, which the code has: ``return_from
self``, ``gamma 0.95``, ``no-w-on-single`` and ``pt_kd_ratio 0.5`` are the code's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from cachekd.config import check_choices, option
from cachekd.errors import ConfigError
from cachekd.losses.choice import Divergence
from cachekd.objectives import Needs
from cachekd.objectives._rollouts import Returns, RolloutOptions, Rollouts
from cachekd.objectives._student_text import check_share, written_by_student
from cachekd.objectives._sums import summed

if TYPE_CHECKING:
    from torch import Tensor

    from cachekd.losses.student import StudentRows
    from cachekd.types import ObjectiveOutput, TargetTensors

_REVERSE = Divergence(name="reverse_kl")
_FORWARD = Divergence(name="forward_kl")


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniLLMOptions(RolloutOptions):
    """Options of ``--objective minillm``."""

    support: int = option(
        32,
        "The student's own best tokens at each position whose teacher probability is kept beside "
        "the teacher's best.",
        group="Rollouts",
    )
    collect: int = option(
        256,
        "Prompts that are answered at once by one policy; 0: those of a batch.",
        group="Rollouts",
    )
    inner_epochs: int = option(4, "Times that a collection is trained on.", group="Rollouts")
    teacher_mix: float = option(
        0.2,
        "alpha: text is drawn from alpha p + (1 - alpha) q; 0 from the student alone, for a "
        "teacher that cannot be asked at every token.",
        group="Rollouts",
    )
    return_from: str = option(
        "next",
        "Rewards that a token is credited with: next, those after it; self, its own too.",
        choices=("next", "self"),
        group="Objective",
    )
    gamma: float = option(1.0, "Discount of later rewards, 0 to 1.", group="Objective")
    length_norm: bool = option(
        True, "Divide a return by the number of rewards in it.", group="Objective"
    )
    whiten: bool = option(
        True, "Whiten advantages over the tokens of a collection.", group="Objective"
    )
    reward_clip: float = option(100.0, "Rewards are held to this size.", group="Objective")
    ppo_clip: float = option(
        0.2, "eps: the ratio of a token is held to 1 - eps .. 1 + eps.", group="Objective"
    )
    single_step: float = option(
        1.0, "Weight of the reverse KL at each position; 0 for none.", group="Objective"
    )
    w_on_single: bool = option(
        True, "Weigh it with the importance weight of the token.", group="Objective"
    )
    lm_coef: float = option(
        1.0, "Weight of the loss on the data's own text; 0 for none.", group="Objective"
    )
    pt_kd_ratio: float = option(
        0.0,
        "Of it the share that is forward KL, the rest being cross entropy.",
        group="Objective",
    )

    def __post_init__(self) -> None:
        check_choices(self)
        RolloutOptions.__post_init__(self)
        for name in ("gamma", "pt_kd_ratio"):
            check_share(name, getattr(self, name))
        if not 0 <= self.teacher_mix < 1:
            raise ConfigError(f"teacher_mix: expected 0 <= alpha < 1; found {self.teacher_mix}")
        for name in ("reward_clip", "ppo_clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected above 0; found {getattr(self, name)}")
        for name in ("single_step", "lm_coef"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: expected a number >= 0; found {getattr(self, name)}")
        if self.collect < 0 or self.inner_epochs < 1:
            raise ConfigError(
                "collect, inner_epochs: expected at least 0 and 1; found "
                f"{self.collect} and {self.inner_epochs}"
            )
        self._check_sampling()

    def _check_sampling(self) -> None:
        """Importance weights are those of text drawn from the whole distribution, and kept."""
        for name, plain in (
            ("rollout_temperature", 1.0),
            ("rollout_top_p", 1.0),
            ("rollout_top_k", 0),
            ("scrg", 0),
        ):
            found = getattr(self, name)
            if found != plain:
                raise ConfigError(
                    f"{name}: expected {plain:g}, as the importance weights of minillm compare the "
                    "student with what its text was drawn from, at temperature 1 from the whole "
                    f"vocabulary and without corrections; found {found:g}. Leave it out, or use "
                    "--objective gkd"
                )


class MiniLLM:
    """See the module's text."""

    Options: ClassVar[type] = MiniLLMOptions

    def __init__(self, options: Any) -> None:
        self.options = options

    def needs(self) -> Needs:
        """Text of the student; of the data's own text targets where forward KL is taken of it."""
        options = self.options
        gold = "scored" if options.pt_kd_ratio else "text"
        returns = Returns(
            include_own=options.return_from == "self",
            gamma=float(options.gamma),
            length_norm=options.length_norm,
            whiten=options.whiten,
            reward_clip=float(options.reward_clip),
        )
        rollouts = Rollouts(
            max_new_tokens=options.max_new_tokens,
            support=options.support,
            collect=options.collect,
            inner_epochs=options.inner_epochs,
            teacher_mix=float(options.teacher_mix),
            gold=gold if options.lm_coef else "none",
            returns=returns,
        )
        return Needs(temperatures=(1.0,), rollouts=rollouts)

    def learned(self, vocab_size: int = 0) -> None:
        """Nothing beside the student."""

    def prepare(self, targets: TargetTensors, vocab_size: int) -> TargetTensors:
        """As they are."""
        return targets

    def __call__(self, student: StudentRows, targets: TargetTensors) -> ObjectiveOutput:
        """Loss and metrics of some rows; a batch that does not say who wrote it is the data's.

        Returns:
            Weighted sums. Metrics, means over the rows that the student wrote: ``pg_loss``;
            ``reverse_kl``; ``clip_share``, the share of tokens whose ratio was cut; ``ratio``
            (rho); ``w``; ``advantage`` and ``advantage_square``. Over the data's rows: ``lm_loss``,
            without its weight.
        """
        import torch

        from cachekd.losses.divergences import divergence

        options, written_R = self.options, written_by_student(targets)
        rows = _policy_rows(student, targets, written_R, float(options.ppo_clip))
        rows["reverse_kl"] = _masked(written_R, divergence(student, targets, _REVERSE))
        single_R = rows["reverse_kl"] * rows["w"] if options.w_on_single else rows["reverse_kl"]
        lm_R = _masked(~written_R, self._language(student, targets))
        terms = [
            (1.0, rows["pg_loss"]),
            (float(options.single_step), single_R),
            (float(options.lm_coef), lm_R),
        ]
        scale_R = targets.get("part_scale", torch.ones_like(lm_R)).to(lm_R.dtype)
        terms = [(factor, scale_R * rows_R) for factor, rows_R in terms]
        output = summed(targets, terms, {**rows, "lm_loss": lm_R, "written": written_R})
        metrics = dict(output.metrics)
        written = metrics.pop("written")
        counts = dict.fromkeys(rows, written) | {"lm_loss": output.weight_sum - written}
        return replace(output, metrics=metrics, counts=counts)

    def _language(self, student: StudentRows, targets: TargetTensors) -> Tensor:
        """(1 - pt_kd_ratio) CE + pt_kd_ratio KL(p || q) of each row, [R]."""
        from cachekd.losses.divergences import divergence

        share, ce_R = float(self.options.pt_kd_ratio), -student.next_log_q()
        if not share:
            return ce_R
        return (1 - share) * ce_R + share * divergence(student, targets, _FORWARD)


def _policy_rows(
    student: StudentRows, targets: TargetTensors, written_R: Tensor, clip: float
) -> dict[str, Tensor]:
    """What the policy gradient says of each row, by metric; 0 where no student wrote, [R]."""
    import torch

    from cachekd.losses.policy import policy_gradient, ratio

    log_q_R = student.next_log_q()
    none_R = torch.zeros_like(log_q_R)
    old_R = targets.get("old_logprob", none_R).to(none_R.dtype)
    behaviour_R = targets.get("behaviour_logprob", none_R)
    advantage_R = _masked(written_R, targets.get("advantage", none_R).to(none_R.dtype))
    policy = policy_gradient(log_q_R, behaviour_R, advantage_R, written_R, clip)
    return {
        "pg_loss": policy.loss_R,
        "clip_share": policy.cut_R,
        "ratio": _masked(written_R, policy.ratio_R),
        "w": _masked(written_R, ratio(old_R, behaviour_R, written_R)),
        "advantage": advantage_R,
        "advantage_square": advantage_R.square(),
    }


def _masked(rows_R: Tensor, values_R: Tensor) -> Tensor:
    """Values of these rows, 0 elsewhere, in value and in gradient."""
    import torch

    return torch.where(rows_R, values_R, torch.zeros_like(values_R))


PLUGIN = MiniLLM
