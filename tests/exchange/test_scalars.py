"""Scalars that plain lists store themselves: what `verify` would refuse is no target."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchanging import brought_in, write_lines
from tiny import Family

from cachekd import open_cache
from cachekd.errors import DataError
from cachekd.store.verify import verify

REST = math.log1p(-math.exp(-0.5))


def line(token: int, **further: Any) -> dict[str, Any]:
    """Three tokens, and two rows of one entry with what the teacher said beside it."""
    row = {"input_ids": [7, 8, token], "token_ids": [[8], [9]], "logprobs": [[-0.5], [-0.5]]}
    scalars = {"tail": [REST] * 2, "entropy": [1.0, 1.5], "lognorm_2.0": [0.5, 0.25]}
    return {**row, "next_logprob": [-0.5, -3.0], **scalars, **further}


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("tail", math.nan, "cannot be"),
        ("tail", None, "cannot be"),
        ("tail", 5.0, "cannot be"),
        ("tail", math.exp(REST), "cannot be"),  # the probability in place of its logarithm
        ("tail", 0.0, "do not add up to mass 1"),
        ("tail", -9.0, "do not add up to mass 1"),
        ("entropy", math.nan, "cannot be"),
        ("entropy", -1.0, "cannot be"),
        ("lognorm_2.0", -math.inf, "cannot be"),
    ],
)
def test_a_scalar_that_cannot_be(
    name: str, value: float | None, found: str, family: Family, tmp_path: Path
) -> None:
    good, bad = line(10), line(11)
    bad[name] = [bad[name][0], value]
    path = write_lines(tmp_path / "a.jsonl", [good, json.dumps(bad)])
    with pytest.raises(DataError, match=f"row 1: .*{found}.*position 1"):
        brought_in(path, family, tmp_path / "strict", format="arrow")
    report = brought_in(path, family, tmp_path / "in", format="arrow", on_bad="skip")
    assert sum(report["rows_left_out"].values()) == 1 and report["samples"] == 2
    assert not verify(str(tmp_path / "in")).findings
    logits = open_cache(str(tmp_path / "in")).get(np.array([7, 8, 11])).logits
    assert np.diff(logits.offsets).tolist() == [1, 0]
    kept = {"tail": logits.tail, "entropy": logits.entropy, "lognorm_2.0": logits.lognorm[2.0]}
    for column, values in kept.items():
        assert values.tolist() == [np.float32(good[column][0]), 0.0]


def test_a_tail_of_no_mass_is_none(family: Family, tmp_path: Path) -> None:
    certain = line(10, logprobs=[[0.0], [-0.5]], tail=[-math.inf, REST])
    path = write_lines(tmp_path / "a.jsonl", [certain])
    brought_in(path, family, tmp_path / "in", format="arrow")
    assert open_cache(str(tmp_path / "in"))[0].logits.tail[0] == -math.inf


def test_sampled_entries_of_a_later_file(family: Family, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    write_lines(folder / "a.jsonl", [line(10)])
    write_lines(folder / "b.jsonl", [line(11, weights=[[0.5], [0.5]])])
    with pytest.raises(DataError, match=r"b\.jsonl row 0: the column weights marks sampled"):
        brought_in(folder, family, tmp_path / "strict", format="arrow")
    report = brought_in(folder, family, tmp_path / "in", format="arrow", on_bad="skip")
    assert report["samples"] == 1 and sum(report["documents_left_out"].values()) == 1
