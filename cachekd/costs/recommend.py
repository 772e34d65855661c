"""What to choose: sizes and money of each setting, the Pareto front, a recommendation and why.

Only settings with one fixed distribution a row compete for the front of bytes and KL. Sampled ones
are right in expectation and noisy in each row: their KL is not defined, their variance is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cachekd.config import PlanConfig
from cachekd.costs.measure import Figures

ENTROPY_SHARE = 0.04
"""Default limit of KL as a share of the teacher's mean entropy.

A rule of thumb. On a flat teacher (4.7 nats) it falls on levels of sqrt(p) of 1/24, on a sharp one
(1.3 nats) on 1/12. The batch gradient of levels of 1/16 on a flat and of 1/12 on a sharp teacher
was measured within 5.4 and 5.0 degrees of the dense one; that of 50 draws within 6.3 and 7.3.
"""
_SHARD_TOKENS = 262_144
_GROUP_BYTES = 1 << 20
_WARM_MASS = 0.9
_REVERSE_TAIL = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A candidate as tables show it. Bytes are of a token of the data; rows not captured count.

    Attributes:
        figures: what was measured.
        targets, input_ids, container: bytes per token of a shard.
        bytes_per_token: these and the prior, shared out over the whole data.
        total: bytes of a cache of this data, samples and index included.
        total_giga: the same for 1e9 tokens.
        storage_cost, storage_cost_giga: price of storing these, or None without prices.
        on_front: whether no other setting is both smaller and closer.
    """

    figures: Figures
    targets: float
    input_ids: float
    container: float
    bytes_per_token: float
    total: float
    total_giga: float
    storage_cost: float | None
    storage_cost_giga: float | None
    on_front: bool

    @property
    def kl(self) -> float | None:
        """KL to dense that settings are judged by, or None for a sampled one."""
        return self.figures.means.get("kl_unigram")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """A row to take, why, whether it keeps the limits, and what to know before."""

    row: Row
    why: str
    within_limits: bool
    warnings: tuple[str, ...]


def rows_of(
    figures: Sequence[Figures], config: PlanConfig, *, tokens: int, bookkeeping: int
) -> tuple[Row, ...]:
    """Sizes and money for data of so many tokens, and the front.

    Args:
        figures: of each candidate.
        config: prices.
        tokens: tokens of the whole data.
        bookkeeping: bytes of its samples tables and index.
    """
    points = [(sum(per_token(one)), one.means.get("kl_unigram", float("inf"))) for one in figures]
    best = front(points)
    rows = []
    for place, one in enumerate(figures):
        targets, input_ids, container = per_token(one)
        each = targets + input_ids + container
        total = each * tokens + one.size.prior + bookkeeping
        giga = (each + bookkeeping / tokens) * 1e9 + one.size.prior
        rows.append(
            Row(
                figures=one,
                targets=targets,
                input_ids=input_ids,
                container=container,
                bytes_per_token=each + one.size.prior / tokens,
                total=total,
                total_giga=giga,
                storage_cost=_storage(config, total),
                storage_cost_giga=_storage(config, giga),
                on_front=place in best,
            )
        )
    return tuple(rows)


def per_token(figures: Figures) -> tuple[float, float, float]:
    """Bytes per token of targets, token ids and container, in shards of the default size."""
    size = figures.size
    targets, input_ids = size.targets / size.tokens, size.input_ids / size.tokens
    groups = max(1 / _SHARD_TOKENS, (targets + input_ids) / _GROUP_BYTES)
    return targets, input_ids, size.records / size.tokens + size.footer * groups


def front(points: Sequence[tuple[float, float]]) -> frozenset[int]:
    """Places of the points that no other equals or beats in both, infinite ones left out."""
    best, chosen = float("inf"), []
    for place in sorted(range(len(points)), key=lambda i: points[i]):
        if points[place][1] < best:
            best = points[place][1]
            chosen.append(place)
    return frozenset(chosen)


def recommend(rows: Sequence[Row], config: PlanConfig, entropy: float) -> Recommendation:
    """The row to take.

    With a limit of bytes alone, the closest within it; else the smallest within the limit of KL.
    Where nothing keeps the limits, the closest that keeps the bytes, or the smallest of all.
    """
    on_front = sorted((row for row in rows if row.on_front), key=lambda row: row.bytes_per_token)
    bytes_limit = config.max_bytes_per_token or float("inf")
    small = [row for row in on_front if row.bytes_per_token <= bytes_limit]
    limit, rule = kl_limit(config, entropy)
    close = [row for row in small if row.kl is not None and row.kl <= limit]
    by_bytes = config.max_kl is None and config.max_bytes_per_token is not None
    if small and by_bytes:
        row, why = small[-1], f"the closest to the teacher within {bytes_limit:g} bytes per token"
    elif close:
        row, why = close[0], f"the smallest on the front whose KL to dense is at most {rule}"
    elif small:
        row, why = small[-1], f"nothing measured has a KL of at most {rule}; this is the closest"
        why += " within the bytes allowed" if config.max_bytes_per_token else ""
    else:
        row, why = on_front[0], f"nothing measured fits {bytes_limit:g} bytes; this is the smallest"
    return Recommendation(
        row=row,
        why=why,
        within_limits=bool(small) if by_bytes else bool(close),
        warnings=tuple(_warnings(row, config)),
    )


def kl_limit(config: PlanConfig, entropy: float) -> tuple[float, str]:
    """The limit of KL in nats, and how it came about."""
    if config.max_kl is not None:
        return config.max_kl, f"{config.max_kl:g} nats"
    limit = ENTROPY_SHARE * entropy
    return limit, f"{limit:.3g} nats ({ENTROPY_SHARE:.0%} of the teacher's mean entropy)"


def _storage(config: PlanConfig, size: float) -> float | None:
    if config.price_per_gb_month is None:
        return None
    return size / 1e9 * config.price_per_gb_month * config.months


def _warnings(row: Row, config: PlanConfig) -> list[str]:
    means = row.figures.means
    found = []
    warm = max(config.temperatures)
    measured = [t for t in (2, 4) if t <= warm] or ([2] if warm > 1 else [])
    for t in measured:
        if means[f"mass_{t}"] < _WARM_MASS:
            found.append(
                f"at T = {t} its entries hold {means[f'mass_{t}']:.1%} of the mass only: train at "
                "T = 1, or take a setting with more entries"
            )
    tail = 1 - means["mass_1"]
    if tail > _REVERSE_TAIL:
        found.append(
            f"its tail holds {tail:.1%} of the mass; objectives of the reverse-KL kind want at "
            f"most {_REVERSE_TAIL:.0%}, since what they miss grows with the student's mass there"
        )
    if (row.figures.kl_error or 0) > 0.1 * (row.kl or 0):
        found.append(
            f"its KL is known to {row.figures.kl_error:.2g} only (standard error); measure more "
            "with --samples"
        )
    return [*found, "bytes are of log-probabilities; attention is not included"]
