"""Imports in this process, and files of other tools as these tools write them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from tiny import Family

from cachekd import ImportConfig, import_cache
from cachekd.types import Record


def brought_in(source: Path, family: Family, cache: Path, **further: object) -> dict[str, Any]:
    """Import files under the tiny tokenizer; the plain codec, for it is the fastest."""
    settings = {"teacher": "org/t", "tokenizer": str(family.teacher), "codec": "plain", **further}
    return import_cache(ImportConfig(source=(str(source),), cache=str(cache), **settings))


def write_lines(path: Path, lines: Sequence[Mapping[str, Any] | str]) -> Path:
    """A JSONL file; text is written as it is."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def padded(records: Sequence[Record], rows: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and ids [rows, samples, k] of the first rows, as Megatron-LM fills short rows."""
    values = torch.full((rows, len(records), k), -1e3)
    ids = torch.full((rows, len(records), k), -1)
    for place, record in enumerate(records):
        offsets = record.logits.offsets
        for row in range(rows):
            own = slice(offsets[row], offsets[row + 1])
            count = own.stop - own.start
            ids[row, place, :count] = torch.tensor(record.logits.ids[own].astype(np.int64))
            values[row, place, :count] = torch.tensor(record.logits.logprobs[own])
    return values, ids


def torch_bytes(content: object) -> bytes:
    """What ``torch.save`` writes."""
    buffer = BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def version_1(values: torch.Tensor, ids: torch.Tensor) -> bytes:
    """An iteration as version 1 has it: lists of micro-batches of one sample."""
    return torch_bytes(
        {
            "values": list(values.split(1, 1)),
            "indices_low": [(part & 0xFFFF).to(torch.uint16) for part in ids.split(1, 1)],
            "bit_17": [(part >> 16).bool() for part in ids.split(1, 1)],
        }
    )


def version_2(
    values: torch.Tensor, ids: torch.Tensor, changed: Mapping[str, object] | None = None
) -> bytes:
    """An iteration as version 2 has it: whole tensors, and the seventeenth bits packed."""
    bits = np.packbits(((ids >> 16) & 1).numpy().astype(np.uint8).ravel())
    return torch_bytes(
        {
            "values": values,
            "indices_low": (ids & 0xFFFF).to(torch.uint16),
            "bit_17": torch.from_numpy(bits),
            "format_version": 2,
            **(changed or {}),
        }
    )


def write_tar(path: Path, meta: Mapping[str, Any], payloads: Mapping[str, bytes]) -> None:
    """A tar of Megatron-LM: what the saver says of itself, and its payloads by name."""
    parts = {"_meta.json": json.dumps({"saver": meta}).encode()}
    parts |= {f"{name}.pt.zst": zstandard.compress(data) for name, data in payloads.items()}
    with tarfile.open(path, "w") as tar:
        for name, data in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
