"""Which divergence a loss is, at which temperature and with what tail; plain names, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from cachekd.errors import ConfigError

NAMES = (
    "forward_kl",
    "reverse_kl",
    "jeffreys",
    "jsd",
    "skew_kl",
    "skew_reverse_kl",
    "tvd",
)
TAILS = ("bucket", "flat", "unigram", "log_rank", "renormalised")
_SPREAD = ("flat", "unigram", "log_rank")


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """A divergence of `cachekd.losses.divergences`, whose text has the formulas.

    Attributes:
        name: one of `NAMES`.
        weight: the w of the formulas; forward_kl, reverse_kl and tvd have none. Mixtures (jsd,
            skew_kl, skew_reverse_kl) take it strictly between 0 and 1.
        temperature: of both sides; the factor T^2 is left to the caller.
        tail: bucket; flat, unigram or log_rank spread the tail (see `cachekd.losses.tails`);
            renormalised compares both sides within the entries alone.

    Raises:
        ConfigError: a value that cannot be used.
    """

    name: str = "forward_kl"
    weight: float = 0.5
    temperature: float = 1.0
    tail: str = "bucket"

    def __post_init__(self) -> None:
        for field, known in (("name", NAMES), ("tail", TAILS)):
            found = getattr(self, field)
            if found not in known:
                what = "divergence" if field == "name" else field
                raise ConfigError(f"{what}: expected one of {', '.join(known)}; found {found!r}")
        if not self.temperature > 0:
            raise ConfigError(f"temperature: expected above 0; found {self.temperature}")
        mixed = self.name in ("jsd", "skew_kl", "skew_reverse_kl")
        if not (0 < self.weight < 1 if mixed else 0 <= self.weight <= 1):
            raise ConfigError(
                f"weight of {self.name}: expected between 0 and 1{' (exclusive)' * mixed}; "
                f"found {self.weight}"
            )

    @property
    def linear(self) -> bool:
        """Whether it is linear in p, so that sampled entries estimate it without bias."""
        return self.name == "forward_kl" and self.temperature == 1.0 and self.tail == "bucket"

    @property
    def dense(self) -> bool:
        """Whether it needs whole logits of a chunk."""
        spread = self.tail in _SPREAD
        return self.tail == "log_rank" or (spread and self.name != "forward_kl")

    @property
    def unigram(self) -> bool:
        """Whether it needs the teacher's mean distribution."""
        return self.tail in ("unigram", "log_rank")
