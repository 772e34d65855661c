"""Tars of Megatron-LM, both versions: values, the order of samples, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from exchanging import brought_in, padded, torch_bytes, version_1, version_2, write_lines, write_tar
from ragged import entries
from tiny import Family

from cachekd import ExportConfig, export_cache, open_cache
from cachekd.errors import ConfigError, DataError
from cachekd.exchange._megatron import _payload
from cachekd.types import Record

ROWS, K = 12, 11
META = {"format_version": 2, "mbs_save": 1, "dp_size_save": 2, "gbs_save": 4}


@pytest.fixture(scope="module")
def records(captured: Path) -> list[Record]:
    """Eight documents with as many rows as the samples have."""
    return [r for r in open_cache(str(captured)) if r.logits.rows >= ROWS][:8]


@pytest.fixture
def tokens(records: list[Record], tmp_path: Path) -> Path:
    """The file of tokens, in the order of training."""
    lines = [{"input_ids": record.input_ids[: ROWS + 1].tolist()} for record in records]
    return write_lines(tmp_path / "tokens.jsonl", lines)


def written(folder: Path, records: list[Record], version: int) -> Path:
    """Two ranks and two iterations of four samples; micro-batches of one go round the ranks."""
    folder.mkdir()
    for rank in range(2):
        own = [records[first + rank : first + 4 : 2] for first in (0, 4)]
        parts = [padded(part, ROWS, K) for part in own]
        if version == 1:
            payloads = {str(i): version_1(*part) for i, part in enumerate(parts)}
            write_tar(folder / f"cp0_dp{rank}__1.tar", {"k": K}, payloads)
        else:
            payloads = {f"{4 * i}-{4 * i + 4}": version_2(*p) for i, p in enumerate(parts)}
            write_tar(folder / f"dp{rank}__0-8.tar", META, payloads)
    return folder


@pytest.mark.parametrize("version", [1, 2])
def test_both_versions_give_every_row_back(
    version: int, records: list[Record], tokens: Path, family: Family, tmp_path: Path
) -> None:
    tars = written(tmp_path / "tars", records, version)
    report = brought_in(tars, family, tmp_path / "in", format="megatron", tokens=(str(tokens),))
    assert report["samples"] == len(records) and not report["documents_left_out"]
    assert report["entries_without_mass"] == len(records) * ROWS
    cache = open_cache(str(tmp_path / "in"))
    for record in records:
        found = cache.get(record.input_ids[: ROWS + 1]).logits
        for row in range(ROWS):
            assert entries(found, row) == entries(record.logits, row)


def test_ids_above_sixteen_bits_and_halves() -> None:
    ids = torch.tensor([0, 65_535, 65_536, 131_071, 70_000, 5, 6, 131_070]).reshape(2, 2, 2)
    values = torch.linspace(-9, 0, 8).reshape(2, 2, 2).bfloat16()
    for name, data in (("3", version_1(values, ids)), ("8-12", version_2(values, ids))):
        found = _payload(_Named(), f"{name}.pt.zst", zstandard.compress(data))
        assert found.samples == 2 and found.number == int(name.partition("-")[0])
        for place in range(2):
            own, logs = found.sample(place)
            assert (own == ids[:, place].numpy()).all()
            assert (logs == values[:, place].float().numpy()).all()


class _Named:
    name = "dp0__0.tar"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"format_version": 3}, "format_version 1 or 2; found 3"),
        ({"cu_seqlens_padded": torch.tensor([[0, 4, 8]])}, "packed of several documents"),
        ({"bit_17": torch.zeros(7, dtype=torch.uint8)}, "bit_17 of shape"),
        ({"values": torch.zeros(2, 2)}, "expected tensors"),
        ({"values": "text"}, "expected tensors"),
    ],
)
def test_a_payload_of_another_kind_is_named(content: dict[str, Any], found: str) -> None:
    good = torch.zeros(2, 2, 3)
    data = version_2(good, good.long(), content)
    with pytest.raises(DataError, match=re.escape(found)):
        _payload(_Named(), "0-4.pt.zst", zstandard.compress(data))


def test_a_frame_that_unpacks_to_far_more_is_refused_unread(monkeypatch: Any) -> None:
    """Sixty-four megabytes of zeros in some kilobytes: nothing is unpacked."""
    bomb = zstandard.compress(torch_bytes({"values": torch.zeros(1 << 24)}))
    assert len(bomb) < 1 << 17
    monkeypatch.setattr(zstandard, "ZstdDecompressor", None)
    with pytest.raises(DataError, match="unpacks to"):
        _payload(_Named(), "0.pt.zst", bomb)


def test_ranks_that_are_missing_are_seen(
    records: list[Record], tokens: Path, family: Family, tmp_path: Path
) -> None:
    tars = written(tmp_path / "tars", records, 2)
    (tars / "dp1__0-8.tar").unlink()
    with pytest.raises(DataError, match="saved by 2 data-parallel ranks; tars of 1"):
        brought_in(tars, family, tmp_path / "in", format="megatron", tokens=(str(tokens),))
    (tars / "dp0__0-8.tar").rename(tars / "dp0__0-8.targets.tar")
    with pytest.raises(DataError, match="as versions 1 and 2"):
        brought_in(tars, family, tmp_path / "in", format="megatron", tokens=(str(tokens),))
    assert not (tmp_path / "in").exists()


def test_megatron_is_not_written(captured: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="imported only"):
        export_cache(ExportConfig(cache=str(captured), format="megatron", out=str(tmp_path / "o")))
    assert not any(tmp_path.iterdir())
