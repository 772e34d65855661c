"""Who writes a batch: both forms of DistiLLM's rule against their tables, written once more."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from cachekd.errors import ConfigError
from cachekd.objectives._rollouts import Share
from cachekd.rollouts.coins import coin, coins
from cachekd.rollouts.schedule import Schedule, Source

CAPACITY, BATCH = 20, 4
RATES = {"decreasing": lambda x: 1 - x, "constant": lambda x: 0.5, "increasing": lambda x: x}


def _adaptive(**changes: object) -> Schedule:
    return Schedule(Share(**{"kind": "adaptive", "lmbda": 0.4, **changes}), CAPACITY)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("fresh_trains", [True, False])
def test_the_tables_of_distillm(rate: str, fresh_trains: bool) -> None:
    schedule = _adaptive(rate=rate, fresh_trains=fresh_trains)
    seen = Counter()
    for u in np.linspace(0, 0.999, 40):
        for progress in (0.0, 0.3, 1.0):
            for filled in (0, 3, 4, 19, 20):
                level = 0.4 * RATES[rate](progress)
                if fresh_trains:  # the released code
                    writes = u < level or (u < 0.4 and filled < CAPACITY)
                else:  # the paper; nothing can be drawn from less than a batch
                    writes = u < level or (u < 0.4 and filled < BATCH)
                expected = Source.FRESH if writes else Source.REPLAY if u < 0.4 else Source.DATA
                assert schedule.draw(u, progress, filled, BATCH) is expected
                seen[expected] += 1
                assert expected is not Source.REPLAY or filled >= BATCH
    assert min(seen[source] for source in Source) > 10


def test_a_buffer_that_holds_no_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"at least the 21 sequences.*--replay"):
        _adaptive().draw(0.9, 0.0, 0, CAPACITY + 1)


@pytest.mark.parametrize(
    ("kind", "shares"),
    [
        ("constant", [0.8, 0.8, 0.8]),
        ("linear", [0.0, 0.4, 0.8]),
        ("exponential", [0.0, 0.8 * (1 - 200**-0.5), 0.8 * (1 - 1 / 200)]),
    ],
)
def test_shares_that_follow_the_run(kind: str, shares: list[float]) -> None:
    schedule = Schedule(Share(kind=kind, lmbda=0.8, per="sample"), 0)
    places = np.arange(20_000)
    for progress, share in zip((0.0, 0.5, 1.0), shares, strict=True):
        drawn = [
            schedule.draw(u, progress, 0, 1) for u in coins(5, int(progress * 10), places).tolist()
        ]
        found = drawn.count(Source.FRESH) / len(drawn)
        assert set(drawn) <= {Source.DATA, Source.FRESH}
        assert abs(found - share) < 5 * max(share * (1 - share), 1e-12) ** 0.5 / 20_000**0.5 + 1e-9


def test_the_ends_of_a_constant_share() -> None:
    for lmbda, expected in ((0.0, Source.DATA), (1.0, Source.FRESH)):
        schedule = Schedule(Share(lmbda=lmbda), 0)
        assert {schedule.draw(u, 0.5, 0, 4) for u in (0.0, 0.5, 1 - 2**-53)} == {expected}


LOSSES = [2.0, 1.5, 1.55, 1.66, 1.8, 2.0, 2.2, 2.25]


@pytest.mark.parametrize(
    ("compare", "phis"),
    [
        # each against the one before, by more than 0.1
        ("last_eval", [0.4, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.8]),
        # against 2.0, until that is reached with the margin; then against 2.2
        ("last_trigger", [0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.5, 0.5]),
        # against 1.5
        ("best", [0.4, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
    ],
)
def test_phi_grows_with_the_held_out_loss(compare: str, phis: list[float]) -> None:
    schedule, resumed = _adaptive(compare=compare), _adaptive(compare=compare)
    for number, (loss, phi) in enumerate(zip(LOSSES, phis, strict=True)):
        if number == 4:
            resumed.restore(json.loads(json.dumps(schedule.state())))
        schedule.evaluated(loss)
        assert schedule.phi == pytest.approx(phi)
        if number >= 4:
            resumed.evaluated(loss)
            assert resumed.state() == schedule.state()


def test_only_the_code_counts_a_loss_that_is_just_the_margin_worse() -> None:
    for compare, grows in (("last_eval", False), ("last_trigger", True), ("best", False)):
        schedule = _adaptive(compare=compare, margin=0.25)
        for loss in (1.0, 1.25):
            schedule.evaluated(loss)
        assert (schedule.phi > 0.4) == grows


def test_phi_ends_at_one_and_is_no_one_elses() -> None:
    schedule = _adaptive(step=0.35, margin=0.0)
    for loss in range(5):
        schedule.evaluated(float(loss))
    assert schedule.phi == 1.0
    constant = Schedule(Share(lmbda=0.4), 0)
    for loss in (1.0, 2.0):
        constant.evaluated(loss)
    assert constant.phi == 0.4


def test_a_loss_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="finite held-out loss; found nan"):
        _adaptive().evaluated(float("nan"))


@pytest.mark.parametrize(
    "state",
    [{}, {"phi": 0.5}, {"phi": 2, "reference": None}, {"phi": "x", "reference": 1.0}],
)
def test_a_state_of_something_else_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="Resume from another checkpoint"):
        _adaptive().restore(state)


def test_coins_are_uniform_and_of_seed_step_and_number_alone() -> None:
    places = np.arange(50_000)
    drawn = coins(1, 2, places)
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert abs(drawn.mean() - 0.5) < 5 * (1 / 12 / len(drawn)) ** 0.5
    counts = np.bincount((drawn * 20).astype(int), minlength=20)
    assert ((counts - 2500) ** 2 / 2500).sum() < 50  # chi-square, 19 degrees: p = 1e-4
    assert np.array_equal(coins(1, 2, places[::-1]), drawn[::-1])
    steps = np.array([coin(1, step) for step in range(4000)])
    for other in (
        coins(1, 3, places),
        coins(2, 2, places),
        np.roll(drawn, 1),
    ):
        assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.025
    assert coin(1, 2) != coin(2, 1) and coin(0, 0) > 0, "no symmetry, and no fixed point at 0"
    assert coin(1, 2) == drawn[0] and abs(np.corrcoef(steps[1:], steps[:-1])[0, 1]) < 0.08
