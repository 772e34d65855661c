"""Stored targets against freshly scored ones, judged by the teacher's own noise.

Comes in: of each record, stored targets and fresh values of the same entries in two batch shapes.
Goes out: for each quantity its differences, and whether they are no more than noise and rounding.
Fresh values are rounded as the capture rounds, so that rounding itself is not counted; what is left
of it is that a little noise may move a value to the next level. Two tests, since faults differ: the
largest difference finds one wrong row, the mean finds a small shift of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cachekd.codecs import Codec
from cachekd.codecs._grids import Grid
from cachekd.codecs._scalars import exact_scalars
from cachekd.evaluation.dense import Float64
from cachekd.types import TopKLogits

NOISE_FACTOR = 4.0
"""How many times the noise of two batch shapes a third shape may be off."""
_FLOAT32 = 2e-5
"""Nats that sums of float32 are uncertain of, where two shapes happen to agree exactly."""
_FLIPS = 0.01
"""Share of values that noise may move to the next level, in the mean."""
_LEAST_LOG = -30.0

# Two codes of each scalar beside levels; see `cachekd.codecs._scalars`.
_SCALAR_LEVELS = {"tail": 0.16, "next_logprob": 2 / 64, "entropy": 2 / 64}
_LOGNORM_LEVELS = 2 / 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A quantity over all records; differences in nats.

    Attributes:
        name: logprobs (of the stored entries of exact heads), tail, next_logprob, entropy, or
            lognorm_T.
        count: values.
        largest, mean: difference of stored to fresh.
        noise_largest, noise_mean: difference of fresh in two batch shapes, before and after
            rounding.
        worst: record of the largest difference, by its place.
        good: whether the difference is noise and rounding.
    """

    name: str
    count: int
    largest: float
    mean: float
    noise_largest: float
    noise_mean: float
    worst: int
    good: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Triple:
    """One record: stored targets, and fresh values of its entries in two batch shapes."""

    stored: TopKLogits
    alone: TopKLogits
    batched: TopKLogits


def compare(records: Sequence[Triple], codec: Codec, grid: Grid) -> tuple[Compared, ...]:
    """Differences of each quantity.

    Args:
        records: at least one.
        codec: rounds as the capture does.
        grid: the capture's rounding of log-probabilities.
    """
    parts: dict[str, list[Float64]] = {}
    for place, record in enumerate(records):
        for name, values in _differences(record, codec, grid).items():
            parts.setdefault(name, []).append(np.vstack([values, np.full(values.shape[1], place)]))
    return tuple(_judge(name, np.concatenate(values, 1)) for name, values in parts.items())


def _differences(record: Triple, codec: Codec, grid: Grid) -> dict[str, Float64]:
    """For each quantity [4, n]: stored to fresh, rounded noise, raw noise, allowance."""
    stored, alone, batched = map(
        _values, (record.stored, rounded(record.alone, codec), rounded(record.batched, codec))
    )
    raw, other = _values(record.alone), _values(record.batched)
    return {
        name: np.stack(
            [
                np.abs(stored[name] - alone[name]),
                np.abs(batched[name] - alone[name]),
                np.abs(other[name] - raw[name]),
                _allowance(name, alone[name], grid),
            ]
        )
        for name in stored
    }


def rounded(targets: TopKLogits, codec: Codec) -> TopKLogits:
    """What the codec gives back."""
    return codec.decode([(codec.encode(targets), targets.rows, len(targets.ids))])[0]


def _values(targets: TopKLogits) -> dict[str, Float64]:
    """Values of captured rows; entries of exact heads in the order of row and token."""
    counts = np.diff(targets.offsets)
    row_n = np.repeat(np.arange(len(counts)), counts)
    head = np.ones(len(row_n), bool) if targets.weights is None else targets.weights == 0
    order = np.lexsort((targets.ids, row_n))
    scalars = {
        "tail": targets.tail,
        "next_logprob": targets.next_logprob,
        "entropy": targets.entropy,
        **{f"lognorm_{t:g}": values for t, values in targets.lognorm.items() if t != 1},
    }
    found = {
        name: np.maximum(values.astype(np.float64), _LEAST_LOG)[counts > 0]
        for name, values in scalars.items()
    }
    return {"logprobs": targets.logprobs[order].astype(np.float64)[head[order]]} | found


def _allowance(name: str, values: Float64, grid: Grid) -> Float64:
    """How far apart two neighbouring levels are, in nats, at each value."""
    if name != "logprobs":
        levels = _SCALAR_LEVELS.get(name, _LOGNORM_LEVELS)
        return np.full(len(values), 0.0 if exact_scalars(grid.header) else levels)
    kind, step = grid.header.values, grid.header.step
    if kind == "sqrt":
        assert step is not None
        # The wider gap of two: the one below; a fresh value may be the higher of its neighbours.
        level: Float64 = np.maximum(np.exp(values / 2) / step - 1, 1.0)
        return 2 * np.log1p(1 / (level - 0.5))
    if kind == "log":
        assert step is not None
        return np.full(len(values), 2 * step)  # its own level, and the scale of its row
    return np.abs(values) * float(2.0 ** (-10 if kind == "float16" else -23))


def _judge(name: str, columns: Float64) -> Compared:
    off, noise, raw, allowed, places = columns
    if not len(off):
        return Compared(
            name=name,
            count=0,
            largest=0.0,
            mean=0.0,
            noise_largest=0.0,
            noise_mean=0.0,
            worst=0,
            good=True,
        )
    beyond = off - allowed
    one = beyond.max() <= NOISE_FACTOR * raw.max() + _FLOAT32
    all_of_them = off.mean() <= NOISE_FACTOR * noise.mean() + _FLIPS * allowed.mean() + _FLOAT32
    return Compared(
        name=name,
        count=len(off),
        largest=float(off.max()),
        mean=float(off.mean()),
        noise_largest=float(raw.max()),
        noise_mean=float(noise.mean()),
        worst=int(places[beyond.argmax()]),
        good=bool(one and all_of_them),
    )


def plain(compared: Sequence[Compared]) -> Mapping[str, Mapping[str, float | int | bool]]:
    """As plain JSON types, by quantity."""
    return {
        one.name: {
            "values": one.count,
            "difference_largest": one.largest,
            "difference_mean": one.mean,
            "noise_largest": one.noise_largest,
            "noise_mean": one.noise_mean,
            "passed": one.good,
        }
        for one in compared
    }
