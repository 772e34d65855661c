"""What the first documents look like holds for all: refusals of later ones name the way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exchanging import brought_in, write_lines
from tiny import Family

from cachekd import ExportConfig, export_cache, open_cache
from cachekd.errors import DataError, UnsealedCache
from cachekd.exchange import _export, _look
from cachekd.exchange.megatron import Megatron

CERTAIN = {"target_token_ids": [[8, 3], [9, 4]], "target_logprobs": [[-1e-5, -12.0]] * 2}
FLAT = {"target_token_ids": [[8, 3], [9, 4]], "target_logprobs": [[-1.0, -2.0]] * 2}
LATE = {"target_mask": [[0, 0], [1, 1]], "labels": [-100, -100, 9]}


@pytest.fixture(autouse=True)
def _two_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_look, "_LOOKED_AT", 2)


def test_values_that_only_looked_normalised(family: Family, tmp_path: Path) -> None:
    ids = [{"input_ids": [7, 8, last]} for last in (9, 10, 11)]
    rows = [{**own, **kind} for own, kind in zip(ids, (CERTAIN, CERTAIN, FLAT), strict=True)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"row 2: mass that is not 1.*--values logprobs"):
        brought_in(path, family, tmp_path / "strict", format="axolotl")
    settings = {"format": "axolotl", "values": "logprobs"}
    report = brought_in(path, family, tmp_path / "in", **settings)
    assert report["samples"] == 3 and not report["rows_left_out"]


def test_targets_of_trained_rows_alone_after_whole_documents(
    family: Family, tmp_path: Path
) -> None:
    rows = [{"input_ids": [7, 8, last], **FLAT} for last in (10, 11)]
    rows.append({"input_ids": [7, 8, 9], **FLAT, **LATE})
    path = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"row 2: rows without targets.*--rows response"):
        brought_in(path, family, tmp_path / "in", format="axolotl", unit_tokens=4)
    with pytest.raises(UnsealedCache, match=r"its import is not finished.*import command again"):
        open_cache(str(tmp_path / "in"))
    settings = {"format": "axolotl", "rows": "response"}
    report = brought_in(path, family, tmp_path / "all", **settings)
    assert report["samples"] == 3 and not report["rows_left_out"]
    cache = open_cache(str(tmp_path / "all"))
    assert np.diff(cache.get(np.array([7, 8, 9])).logits.offsets).tolist() == [0, 2]


def test_ids_that_seventeen_bits_cannot_hold(tmp_path: Path) -> None:
    from cachekd import ImportConfig

    further = {"format": "megatron", "teacher": "t", "tokenizer": "t", "tokens": ("t.jsonl",)}
    config = ImportConfig(source=(str(tmp_path),), cache=str(tmp_path / "in"), **further)
    with pytest.raises(DataError, match=r"17 bits.*131073 tokens"):
        Megatron.read(config, (1 << 17) + 1)


@pytest.mark.parametrize("name", ["arrow", "axolotl", "distillkit"])
def test_wide_rows_are_written_fewer_at_a_time(
    name: str, captured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten entries a row: in parts of some forty tokens, or all samples at once."""
    tables = []
    for most in (1 << 26, 400):
        monkeypatch.setattr(_export, "_ENTRIES", most)
        out = tmp_path / f"{name}-{most}"
        told: list[int] = []
        export_cache(
            ExportConfig(cache=str(captured), format=name, out=str(out)),
            progress=lambda done, total, told=told: told.append(done),
        )
        tables.append(told)
    assert tables[0] == [12] and len(tables[1]) > 3 and tables[1][-1] == 12
