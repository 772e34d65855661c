"""What on-policy objectives ask of the text that the student writes: torch-free nouns and options.

In: options of an objective. Out: `Rollouts`, which the trainer reads from `Needs.rollouts`: who
writes a batch, how often it is trained on, and what is known of each of its rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from cachekd.config import option
from cachekd.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How often the student's own text is trained on.

    Attributes:
        kind: constant; linear or exponential, which lead the share from 0 to lmbda over the run;
            adaptive, by held-out loss (DistiLLM, Algorithm 1).
        lmbda: share of student text; of adaptive the first value of its phi.
        per: one coin a batch (the same in all processes), or one a sample.
        rate: adaptive: fresh text for u < phi * f(t / T): decreasing 1 - t/T, constant 1/2,
            increasing t/T; between that and phi, text of the replay buffer.
        step: adaptive: what phi grows by.
        margin: adaptive: how much worse the held-out loss must be.
        compare: adaptive: than which: last_eval, last_trigger or best.
        fresh_trains: adaptive: whether a batch that was just written is trained on itself; else
            one drawn from the buffer is.
    """

    kind: str = "constant"
    lmbda: float = 1.0
    per: str = "batch"
    rate: str = "decreasing"
    step: float = 0.1
    margin: float = 0.1
    compare: str = "last_eval"
    fresh_trains: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """Sequence correction and re-generation (SCRG).

    Attributes:
        frequency: corrections of a sequence, each behind the last.
        pick: the token of a correction: argmax, or sample from the teacher.
        divergence: reverse_kl (student || teacher) or forward_kl.
    """

    frequency: int = 1
    pick: str = "argmax"
    divergence: str = "reverse_kl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Returns:
    """How rewards r_t = log p - log q_old become advantages (MiniLLM).

    Attributes:
        include_own: whether the return of a token includes its own reward.
        gamma: discount.
        length_norm: whether a return is divided by the number of rewards in it.
        whiten: whether advantages are whitened over the tokens of a collection.
        reward_clip: rewards are held to this size.
    """

    include_own: bool = False
    gamma: float = 1.0
    length_norm: bool = True
    whiten: bool = True
    reward_clip: float = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """The student's text as an objective takes it.

    Attributes:
        max_new_tokens: most tokens of a response, its end token among them.
        temperature, top_p, top_k: what is drawn from, as transformers define it.
        share: who writes.
        collect: prompts that are answered at once by one policy; 0: those of a batch.
        inner_epochs: times that a collection is trained on.
        teacher_mix: alpha of teacher-mixed sampling, p~ = alpha p + (1 - alpha) q.
        replay: capacity of the replay buffer in sequences of a process; 0: none.
        support: the student's own best k' tokens whose teacher probability is kept beside the head.
        gold: whether rows of the data's own responses come beside: none, text or scored.
        correction: SCRG, or None.
        returns: how advantages are made, or None where none are wanted.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    share: Share = Share()
    collect: int = 0
    inner_epochs: int = 1
    teacher_mix: float = 0.0
    replay: int = 0
    support: int = 0
    gold: str = "none"
    correction: Correction | None = None
    returns: Returns | None = None


@dataclass(frozen=True, kw_only=True)  # no slots: it is mixed into options that have their own
class RolloutOptions:
    """Options of every on-policy objective."""

    max_new_tokens: int = option(
        256, "Most tokens that the student writes, its end token among them.", group="Rollouts"
    )
    rollout_temperature: float = option(
        1.0, "Temperature of the distribution that the student draws from.", group="Rollouts"
    )
    rollout_top_p: float = option(
        1.0, "Draw from the most probable tokens up to this mass.", group="Rollouts"
    )
    rollout_top_k: int = option(
        0, "Draw from the k most probable tokens; 0: from all.", group="Rollouts"
    )
    support: int = option(
        0,
        "The student's own best tokens at each position whose teacher probability is kept beside "
        "the teacher's best.",
        group="Rollouts",
    )
    scrg: int = option(
        0,
        "Corrections of each sequence by the teacher, with what follows written anew (SCRG); 0: "
        "none.",
        group="Rollouts",
    )
    scrg_token: str = option(
        "argmax",
        "The teacher's token of a correction.",
        choices=("argmax", "sample"),
        group="Rollouts",
    )
    scrg_divergence: str = option(
        "reverse_kl",
        "Where a sequence is corrected: at the greatest of this divergence.",
        choices=("reverse_kl", "forward_kl"),
        group="Rollouts",
    )

    def __post_init__(self) -> None:
        for name, least in (
            ("max_new_tokens", 1),
            ("rollout_top_k", 0),
            ("support", 0),
            ("scrg", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected {least} or more; found {getattr(self, name)}")
        if not 0.0 < self.rollout_temperature < float("inf"):
            raise ConfigError(
                f"rollout_temperature: expected above 0; found {self.rollout_temperature}"
            )
        if not 0.0 < self.rollout_top_p <= 1.0:
            raise ConfigError(f"rollout_top_p: expected 0 < p <= 1; found {self.rollout_top_p}")


def correction_of(options: RolloutOptions) -> Correction | None:
    """The SCRG that options ask for."""
    if not options.scrg:
        return None
    return Correction(
        frequency=options.scrg, pick=options.scrg_token, divergence=options.scrg_divergence
    )
