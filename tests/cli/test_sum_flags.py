"""Terms of a sum from YAML and from flags, to a trained student."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import capture
from tiny import Family, Ran

Run = Callable[..., Ran]
NESTED = """
objective: sum
terms:
  sft: {weight: 1.0}
  span: {weight: 2, chunker: adjacent}
  second-kd: {objective: kd, weight: 1e-1, temperature: 2}
"""


@pytest.fixture
def train(cachekd: Run, family: Family, data: Path, tmp_path: Path) -> Callable[..., Any]:
    capture(family, data, tmp_path / "cache")
    flags = ["--cache", tmp_path / "cache", "--student", family.student, "--use-cpu", "true"]
    flags += ["--output-dir", tmp_path / "out", "--max-steps", 2, "--logging-steps", 1, "--json"]
    return lambda *more: cachekd("train", *flags, *more)


def test_terms_of_a_file_have_options(train: Callable[..., Ran], tmp_path: Path) -> None:
    config = tmp_path / "sum.yaml"
    config.write_text(NESTED.replace("second-kd", "second"))
    done = train("--config", config, "--packing", "--max-length", 64)
    assert done.code == 0, done.err
    row = done.json["history"][0]
    shares = [row[f"{name}/loss"] for name in ("sft", "span", "second")]
    assert row["loss"] == pytest.approx(sum(shares), rel=1e-3)
    assert shares[1] == pytest.approx(2 * row["span/span"]) and row["span/span"] > 0
    assert shares[2] == pytest.approx(0.1 * (0.9 * 4 * row["second/kl"] + 0.1 * row["second/ce"]))
    assert 0 < row["span/pair_share"] < 1
    config.write_text(NESTED)
    refused = train("--config", config)
    assert refused.code == 2 and "digits and underscores; found 'second-kd'" in refused.err


def test_flags_give_weights(train: Callable[..., Ran]) -> None:
    done = train("--objective", "sum", "--terms", "sft=1", "--terms", "kd=0.5,span=2")
    assert done.code == 0, done.err
    row = done.json["history"][0]
    shares = {name: row[f"{name}/loss"] for name in ("sft", "kd", "span")}
    assert row["loss"] == pytest.approx(sum(shares.values()), rel=1e-3)
    assert shares["span"] == pytest.approx(2 * row["span/span"])
    refused = train("--objective", "sum")
    assert refused.code == 2 and "--terms sft=1" in refused.err
