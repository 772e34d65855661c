"""Which attention is kept: settings, budgets and drawn rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekd import PrecomputeConfig
from cachekd.data.attention import (
    AttentionShape,
    AttentionSpec,
    attention_shape,
    attention_spec,
    drawn_rows,
)
from cachekd.data.attention_budget import at_most, choose, estimate
from cachekd.errors import ConfigError, TeacherError

SHAPE = AttentionShape(layers=32, heads=32, key_heads=8, head_width=128)


def config(**further: Any) -> PrecomputeConfig:
    return PrecomputeConfig(teacher="t", data=("d",), cache="c", **{"attention": "maps", **further})


def spec(shape: AttentionShape = SHAPE, **further: Any) -> AttentionSpec:
    return attention_spec(config(**further), shape)


def test_layers_and_heads() -> None:
    assert spec().layers == (7, 15, 23, 31)
    assert spec(AttentionShape(layers=5, heads=2, key_heads=2, head_width=4)).layers == (0, 1, 2, 4)
    assert spec(AttentionShape(layers=2, heads=2, key_heads=2, head_width=4)).layers == (0, 1)
    assert spec(attention_layers=(3.0, 1.0)).layers == (1, 3)
    assert spec().heads == tuple(range(32))
    assert spec(attention_heads="mean").heads == (-1,)
    few = spec(attention_heads="9,0, 3", attention="qk")
    assert few.heads == (0, 3, 9)
    assert few.stored_key_heads == (0, 2) and few.groups == (0, 0, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention_layers": (32.0,)}, "layers 0 to 31"),
        ({"attention_layers": (1.5,)}, "layers 0 to 31"),
        ({"attention_heads": "0,32"}, "numbers from 0 to 31"),
        ({"attention_heads": "some"}, "all, mean, or numbers"),
    ],
)
def test_layers_and_heads_that_there_are_not(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attn_implementation": "sdpa"}, "sdpa never makes attention maps"),
        ({"attn_implementation": "flash_attention_2"}, "flash_attention_2 never makes"),
        ({"attention": "auto"}, "auto needs one"),
        ({"attention_budget": 100}, "belongs to attention auto"),
        ({"attention": "none", "attention_budget": 100}, "set attention to auto"),
        ({"attention_row_share": 0.0}, "0 < share <= 1"),
        ({"attention_keys": -1}, "0 or more"),
        ({"attention": "qk", "attention_heads": "mean"}, "needs attention maps"),
        ({"attention": "qk", "attention_keys": 8}, "needs attention maps"),
        ({"attention_step": 1 / 300}, "attention_step: expected"),
        ({"attention": "qk", "attention_step": 2.0}, "for qk"),
        ({"attention": "some"}, "expected one of none, maps, qk, auto"),
    ],
)
def test_settings_that_contradict(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**settings)


def test_eager_is_chosen_only_where_attention_is_asked() -> None:
    assert config().attention_kernel == "eager"
    assert config(attention="none").attention_kernel == "sdpa"
    assert config(attention="none", attn_implementation="eager").attention_kernel == "eager"


def test_shape_of_a_configuration() -> None:
    llama = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2}
    assert attention_shape({**llama, "hidden_size": 64}) == AttentionShape(
        layers=4, heads=8, key_heads=2, head_width=8
    )
    assert attention_shape({"text_config": {**llama, "head_dim": 16}}).head_width == 16
    gpt2 = {"n_layer": 2, "n_head": 4, "n_embd": 32}
    assert attention_shape(gpt2) == AttentionShape(layers=2, heads=4, key_heads=4, head_width=8)
    with pytest.raises(TeacherError, match="does not state num_hidden_layers"):
        attention_shape({"hidden_size": 8})


@given(st.integers(1, 300), st.binary(min_size=16, max_size=16), st.integers(-9, 9))
def test_drawn_rows_depend_on_seed_key_and_row_alone(rows: int, key: bytes, seed: int) -> None:
    some = spec(attention_row_share=0.4, attention_seed=seed)
    drawn = drawn_rows(some, key, rows)
    assert (drawn == drawn_rows(some, key, rows)).all()
    assert (drawn_rows(some, key, rows + 5)[:rows] == drawn).all()
    more = drawn_rows(spec(attention_row_share=0.7, attention_seed=seed), key, rows)
    assert (more | ~drawn).all(), "a larger share keeps the rows of a smaller one"
    assert drawn_rows(spec(), key, rows).all()


def test_weighted_sums_over_drawn_rows_are_unbiased() -> None:
    values = np.random.default_rng(0).random(40) ** 3
    share, seeds = 0.3, 4000
    sums = []
    for seed in range(seeds):
        some = spec(attention_row_share=share, attention_seed=seed)
        sums.append(values[drawn_rows(some, b"k" * 16, 40)].sum() / share)
    deviation = np.sqrt((values**2).sum() * (1 - share) / share / seeds)
    assert abs(np.mean(sums) - values.sum()) < 4 * deviation
    counts = np.mean(
        [
            drawn_rows(spec(attention_row_share=share), bytes([i] * 16), 400).mean()
            for i in range(100)
        ]
    )
    assert abs(counts - share) < 0.015


def budget(size: int, lengths: tuple[int, ...] = (512,) * 3, **further: Any) -> Any:
    return choose(config(attention="auto", attention_budget=size, **further), SHAPE, lengths)


def test_a_budget_is_kept_and_a_larger_one_is_never_worse() -> None:
    def wealth(found: AttentionSpec) -> tuple[float, ...]:
        keys = found.keys or 10**6
        return (len(found.heads), found.share, len(found.layers), keys)

    before = (0.0,)
    for size in (20, 60, 200, 800, 3000, 10_000, 40_000):
        found = budget(size)
        assert found.bytes_per_token == estimate(found.spec, [512] * 3) <= size
        assert budget(size).spec == found.spec
        assert wealth(found.spec) >= before
        before = wealth(found.spec)
    assert budget(10**6).spec.kind == "qk" and budget(10**6).spec.share == 1


def test_the_smaller_of_maps_and_queries_is_taken() -> None:
    short, long = (64,) * 3, (4096,) * 3
    of_maps = estimate(spec(), short)
    assert budget(int(of_maps) + 1, short).spec.kind == "maps"
    of_qk = estimate(spec(attention="qk"), long)
    assert of_qk < estimate(spec(), long)
    assert budget(int(of_qk) + 1, long).spec.kind == "qk"


def test_a_budget_too_small_says_how_much_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"3 bytes a token are not enough.*takes about \d+"):
        budget(3)


@pytest.mark.parametrize("further", [{}, {"attention": "qk"}, {"attention_keys": 8}])
def test_the_bound_is_above_the_estimate(further: dict[str, Any]) -> None:
    for length in (2, 17, 512, 4096):
        some = spec(**further)
        assert at_most(some, length) >= estimate(some, [length]) * length * 0.9
