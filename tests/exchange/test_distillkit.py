"""DistillKit: legacy and packed Parquet as its description has them, and the curves of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from exchanging import brought_in, write_lines
from tiny import Family

from cachekd import ExportConfig, export_cache, open_cache
from cachekd.errors import DataError
from cachekd.exchange._bits import unpack_words
from cachekd.exchange._curves import curve, legacy_curve, values_of
from cachekd.exchange._files import numbers
from cachekd.types import Record

K, EXACT, DEGREE = 10, 4, 3
LEGACY = {"k": K, "exact_k": EXACT, "polynomial_degree": DEGREE}


@pytest.fixture(scope="module")
def records(captured: Path) -> list[Record]:
    return list(open_cache(str(captured)))


def words(ids: np.ndarray, bits: int) -> list[int]:
    """Ids of a row as 64-bit words, the first in the lowest bits; whole numbers of Python."""
    each = 64 // bits
    parts = [ids[i : i + each].tolist() for i in range(0, len(ids), each)]
    return [sum(int(token) << (bits * place) for place, token in enumerate(p)) for p in parts]


def legacy_row(record: Record, vocab: int) -> tuple[dict[str, Any], np.ndarray]:
    """A document in the legacy schema, and the values [R, K] that it stands for."""
    logs = record.logits.logprobs.reshape(-1, K).astype(np.float64)
    ids = record.logits.ids.reshape(-1, K)
    place = np.arange(1, K - EXACT + 1)
    terms = np.stack([place ** -float(power) for power in range(DEGREE + 1)], axis=1)
    factors = np.linalg.lstsq(terms, logs[:, EXACT:].T, rcond=None)[0].T.astype(np.float32)
    row = {
        "input_ids": record.input_ids.tolist(),
        "packed_indices": [words(own, (vocab - 1).bit_length()) for own in ids],
        "exact_values": logs[:, :EXACT].astype(np.float16).astype(np.float32).tolist(),
        "coeffs": factors.tolist(),
    }
    exact = logs[:, :EXACT].astype(np.float16).astype(np.float64)
    return row, np.concatenate([exact, factors.astype(np.float64) @ terms.T], axis=1)


def write(folder: Path, rows: list[dict[str, Any]], vocab: int, **further: Any) -> Path:
    """A Parquet file and its settings, as a training config holds them."""
    folder.mkdir()
    lists, floats = pa.list_(pa.list_(pa.uint64())), pa.list_(pa.list_(pa.float32()))
    fields = [("input_ids", pa.list_(pa.uint64())), ("packed_indices", lists)]
    fields += [("exact_values", floats), ("coeffs", floats)]
    if "attention_mask" in rows[0]:
        fields.append(("attention_mask", pa.list_(pa.int64())))
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(fields)), folder / "data_0.parquet")
    settings = {**LEGACY, "vocab_size": vocab, **further}
    config = {"teacher": {"kind": "dataset", "legacy_logit_compression": settings}}
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(config))
    return folder


def assert_stands_for(record: Record, found: Record, values: np.ndarray, rows: int) -> None:
    """Entries are those of the record; values too, less the log of a mass above 1."""
    for row in range(rows):
        own = slice(*found.logits.offsets[row : row + 2])
        mass = max(1.0, float(np.exp(values[row]).sum()))
        ids = record.logits.ids.reshape(-1, K)[row].tolist()
        expected = dict(zip(ids, values[row] - np.log(mass), strict=True))
        got = dict(zip(found.logits.ids[own].tolist(), found.logits.logprobs[own], strict=True))
        assert got.keys() == expected.keys()
        assert max(abs(got[i] - expected[i]) for i in got) < 1e-6


def test_legacy_rows(records: list[Record], family: Family, tmp_path: Path) -> None:
    """Two rows have a mass above 1, as approximations of a sure teacher do."""
    rows = [legacy_row(record, family.vocab) for record in records]
    for row, values in rows[:2]:
        values[3, :EXACT] = row["exact_values"][3] = [-0.25, -0.5, -0.75, -1.0]
    folder = write(tmp_path / "dk", [row for row, _ in rows], family.vocab)
    settings = {"format": "distillkit", "rescale": True}
    report = brought_in(folder, family, tmp_path / "in", **settings)
    assert report["rows_rescaled"] == 2
    assert not report["rows_left_out"] and report["samples"] == len(records)
    cache = open_cache(str(tmp_path / "in"))
    for record, (_, values) in zip(records, rows, strict=True):
        assert_stands_for(record, cache.get(record.input_ids), values, record.logits.rows)
    with pytest.raises(DataError, match=r"mass above 1 \(at position 3\).*--rescale"):
        brought_in(folder, family, tmp_path / "strict", format="distillkit")
    assert not (tmp_path / "strict").exists()


def test_documents_of_a_packed_row(records: list[Record], family: Family, tmp_path: Path) -> None:
    """Tokens were cut to rows, several documents fill one row, and the last was cut short."""
    parts = [legacy_row(record, family.vocab) for record in records[:3]]
    lengths = [record.logits.rows for record in records[:3]]
    lengths[2] -= 2
    packed: dict[str, Any] = {"attention_mask": []}
    for number, ((row, _), length) in enumerate(zip(parts, lengths, strict=True)):
        packed["attention_mask"] += [number + 1] * length
        for name, column in row.items():
            packed.setdefault(name, []).extend(column[:length])
    padding = {"attention_mask": 0, "input_ids": 0, "packed_indices": [0, 0]}
    padding |= {"exact_values": [0.0] * EXACT, "coeffs": [0.0] * (DEGREE + 1)}
    for name, value in padding.items():
        packed[name] += [value] * 3
    folder = write(tmp_path / "dk", [packed], family.vocab)
    report = brought_in(folder, family, tmp_path / "in", format="distillkit", rescale=True)
    assert report["samples"] == 3
    cache = open_cache(str(tmp_path / "in"))
    for record, (_, values), length in zip(records[:3], parts, lengths, strict=True):
        found = cache.get(record.input_ids[:length])
        assert found.logits.rows == length - 1
        assert_stands_for(record, found, values, length - 1)


def test_centred_logits(records: list[Record], family: Family, tmp_path: Path) -> None:
    """Older captures hold logits less their mean: the refusal names the setting that reads them."""
    rows = []
    for record in records:
        row, _ = legacy_row(record, family.vocab)
        row["exact_values"] = [[v + 9 for v in own] for own in row["exact_values"]]
        row["coeffs"] = [[first + 9, *rest] for first, *rest in row["coeffs"]]
        rows.append(row)
    folder = write(tmp_path / "dk", rows, family.vocab)
    with pytest.raises(DataError, match=r"above 0.*--values logits"):
        brought_in(folder, family, tmp_path / "in", format="distillkit")
    report = brought_in(folder, family, tmp_path / "in", format="distillkit", values="logits")
    assert report["values"] == "logits" and report["samples"] == len(records)
    logits = open_cache(str(tmp_path / "in"))[0].logits
    masses = np.add.reduceat(np.exp(logits.logprobs.astype(np.float64)), logits.offsets[:-1])
    assert np.allclose(masses, 1, atol=1e-6)


def test_rows_without_targets_are_not_trained(family: Family, tmp_path: Path) -> None:
    """Row t is masked by the label of token t: none that is trained on is of fillers alone."""
    row = {"input_ids": [7, 8, 9, 10, 11, 12], "labels": [-100, -100, -100, 10, 11, 12]}
    row["target_token_ids"] = [[5, 6]] * 6
    row["target_logprobs"] = [[-0.5, -2.0]] * 6
    row["target_mask"] = [[0, 0], [0, 0], [1, 1], [1, 1], [1, 1], [0, 0]]
    path = write_lines(tmp_path / "a.jsonl", [row])
    brought_in(path, family, tmp_path / "response", format="axolotl")
    settings = {"cache": str(tmp_path / "response"), "format": "distillkit"}
    report = export_cache(ExportConfig(out=str(tmp_path / "out"), **settings))
    assert "targets of rows whose own token is not trained" in report["lost"]
    (file,) = (tmp_path / "out").glob("*.parquet")
    (written,) = pq.read_table(file).to_pylist()
    assert written["labels"] == [-100, -100, -100, 10, 11, 12]
    values = np.array(written["compressed_logprobs"], np.uint8).view("<f4")
    trained = np.array(written["labels"][:-1]) >= 0
    assert np.allclose(np.exp(values).sum(1)[trained], np.exp(-0.5) + np.exp(-2.0))
    assert (values[:2] <= -99).all()
    brought_in(tmp_path / "out", family, tmp_path / "in", format="distillkit")
    first, second = (open_cache(str(tmp_path / name))[0] for name in ("response", "in"))
    assert second.prompt_length == first.prompt_length == 3
    assert (second.logits.offsets == first.logits.offsets).all()


def test_settings_of_another_compressor(
    records: list[Record], family: Family, tmp_path: Path
) -> None:
    row, _ = legacy_row(records[0], family.vocab)
    folder = write(tmp_path / "dk", [row], family.vocab, exact_k=EXACT + 1)
    with pytest.raises(DataError, match="settings of another compressor"):
        brought_in(folder, family, tmp_path / "in", format="distillkit")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("normalized", [True, False])
def test_half_precision_is_rounded_as_the_writer_rounds(dtype: str, normalized: bool) -> None:
    """Torch's own arithmetic of the dtype, which the writer's residuals correct."""
    kind = getattr(torch, dtype)
    count, terms = 113, [0, 1, 2, 3, "sqrt"]
    places = torch.linspace(0, 1, count, dtype=kind)
    if not normalized:
        places, terms = torch.arange(count, dtype=kind), [0, 1, "sqrt"]
    stacked = [places**t if isinstance(t, int) else places.sqrt() for t in terms]
    factors = torch.randn(20, len(terms), generator=torch.Generator().manual_seed(0)).to(kind)
    expected = (torch.stack(stacked, -1) * factors[:, None]).sum(-1)
    found = values_of(
        factors.float().numpy(), curve(terms, count, normalized=normalized, dtype=dtype), dtype
    )
    assert (found == expected.float().numpy()).all()


def test_large_terms_cancel_exactly() -> None:
    """Coefficients of 10^4, as fits of the eighth degree have them, in exact fractions."""
    from fractions import Fraction

    factors = np.array([[-9.5, 310, -4e3, 1.5e4, -1.5e4, 3.9e3, 88, -401, 2]], np.float32)
    found = values_of(factors, legacy_curve(8, 96, inverted=True, root=False))
    for place in (1, 2, 3, 50, 96):
        parts = [Fraction(float(f)) / place**power for power, f in enumerate(factors[0])]
        assert abs(found[0, place - 1] - float(sum(parts))) <= 1e-6 * abs(float(sum(parts)))


def test_words_may_stand_as_signed_numbers() -> None:
    """Four ids of sixteen bits fill a word, whose highest bit is a sign to some writers."""
    ids = np.array([[65_535, 1, 40_000, 65_534, 7]])
    signed = np.array([words(ids[0], 16)], np.uint64).view(np.int64)
    assert (signed < 0).any()
    found = numbers(pa.array(signed[0]), np.uint64).reshape(1, -1)
    assert unpack_words(found, 16, 5).tolist() == ids.tolist()
    for values in (pa.array([0.5]), pa.array(["a"]), pa.array([None], pa.int64())):
        with pytest.raises(DataError, match="expected numbers"):
            numbers(values, np.uint64)
