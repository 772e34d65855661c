"""The front has no beaten point, and the recommendation keeps the limits or says that it cannot."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekd.config import DataConfig, ModelConfig, PlanConfig
from cachekd.costs.candidates import Candidate, candidates, flags_of
from cachekd.costs.measure import Figures, Size
from cachekd.costs.recommend import Row, front, recommend, rows_of

POINT = st.tuples(st.floats(0.1, 1e3), st.floats(0, 10))


def config(**changes: object) -> PlanConfig:
    return PlanConfig(**{"teacher": "t", "data": ("d",), **changes})  # type: ignore[arg-type]


def a_candidate() -> Candidate:
    return candidates(config(), "s", {"vocab_size": 100})[0]


def figures(size: int, kl: float | None, mass: float = 0.99, error: float = 0.0) -> Figures:
    means = {"mass_1": mass, "mass_2": mass / 2, "mass_4": mass / 4, "error": 0.1}
    return Figures(
        candidate=a_candidate(),
        means=means if kl is None else means | {"kl_unigram": kl},
        kl_error=error,
        entries=5.0,
        size=Size(targets=size, input_ids=0, records=0, footer=0.0, prior=0, tokens=1),
    )


def rows(*measured: Figures, **changes: object) -> tuple[Row, ...]:
    return rows_of(measured, config(**changes), tokens=1000, bookkeeping=50)


@given(st.lists(POINT, min_size=1, max_size=30))
def test_no_point_of_the_front_is_beaten_and_every_other_is(
    points: list[tuple[float, float]],
) -> None:
    best = front(points)
    for place, point in enumerate(points):
        beaten = any(
            other[0] <= point[0] and other[1] <= point[1] and other != point for other in points
        )
        twin = points.index(point) in best
        assert (place in best) <= (not beaten)
        assert beaten or twin


SIZES = (figures(10, 0.5), figures(20, 0.1), figures(30, 0.3), figures(40, 0.02), figures(5, None))


@pytest.mark.parametrize(
    ("changes", "size", "kept"),
    [
        ({"max_kl": 0.1}, 20, True),
        ({"max_kl": 0.05}, 40, True),
        ({"max_kl": 0.001}, 40, False),
        ({"max_bytes_per_token": 35.0}, 20, True),
        ({"max_bytes_per_token": 35.0, "max_kl": 0.6}, 10, True),
        ({"max_bytes_per_token": 35.0, "max_kl": 0.05}, 20, False),
        ({"max_bytes_per_token": 1.0}, 10, False),
        ({}, 20, True),  # 4 % of an entropy of 2.5
    ],
)
def test_the_limits_are_kept(changes: dict[str, float], size: int, kept: bool) -> None:
    advice = recommend(rows(*SIZES, **changes), config(**changes), 2.5)
    assert advice.row.targets == size
    assert advice.within_limits is kept
    assert ("nothing" in advice.why) is not kept


def test_warnings_name_what_to_beware_of() -> None:
    advice = recommend(rows(figures(10, 0.1, 0.9, 0.05)), config(), 2.0)
    text = " ".join(advice.warnings)
    for part in ("T = 2", "reverse-KL", "standard error", "attention"):
        assert part in text
    only_cold = recommend(rows(figures(10, 0.1)), config(temperatures=(1.0,)), 2.0)
    assert not any("T = 2" in warning for warning in only_cold.warnings)


def test_money_is_counted_from_prices_and_never_made_up() -> None:
    (free,) = rows(figures(10, 0.1))
    assert free.storage_cost is None
    (paid,) = rows(figures(10, 0.1), price_per_gb_month=2.0, months=3.0)
    assert free.total == paid.total == 10 * 1000 + 50
    assert paid.storage_cost == pytest.approx((10 * 1000 + 50) / 1e9 * 6)
    assert paid.storage_cost_giga == pytest.approx((10 + 0.05) * 6)


def test_the_grid_has_names_flags_and_no_setting_twice() -> None:
    made = candidates(config(), "s", {"vocab_size": 32000})
    assert made[0].name == "as configured" and made[0].flags == ""
    assert len({one.identity.capture_id for one in made}) == len(made) == 17
    assert sum(one.sampled for one in made) == 4
    tiny = candidates(config(), "s", {"vocab_size": 20})
    assert len(tiny) < len(made)
    sqrt = next(one for one in made if one.name == "sqrt 1/12")
    assert sqrt.selection.min_prob == pytest.approx((1 / 24) ** 2)


def test_flags_of_a_candidate_make_its_capture(tmp_path: Path) -> None:
    from cachekd.config import PrecomputeConfig
    from cachekd.store.identity import capture_spec

    for one in candidates(config(temperatures=(1.0, 4.0)), "s", {"vocab_size": 32000}):
        words = one.flags.split()
        pairs = dict(zip(words[::2], words[1::2], strict=True))
        values: dict[str, object] = {}
        for flag, text in pairs.items():
            name = flag[2:].replace("-", "_")
            if name == "temperatures":
                values[name] = tuple(map(float, text.split(",")))
            elif name in ("logits_selection", "logits_values"):
                values[name] = text
            elif name == "logits_step":
                values[name] = float(Fraction(text))
            else:
                values[name] = float(text) if "." in text else int(text)
        again = PrecomputeConfig(teacher="t", data=("d",), cache="c", **values)  # type: ignore[arg-type]
        kernel = one.identity.capture["attn_implementation"]
        assert capture_spec(again, kernel, 32000) == dict(one.identity.capture)


def test_the_command_repeats_what_was_given() -> None:
    given = config(
        data=("a b.jsonl", "c.jsonl"), add_eos=False, columns={"output": "answer"}, dtype="bfloat16"
    )
    assert flags_of(given, ModelConfig) == "--teacher t --dtype bfloat16"
    assert flags_of(given, DataConfig) == (
        "--data 'a b.jsonl' --data c.jsonl --columns output=answer --no-add-eos"
    )
