"""The format of attention shards, read by a second decoder that shares no code with cachekd."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import chat_rows

import cachekd

PATH = Path(__file__).parent / "format" / "reference_attention.py"


def reference() -> Any:
    spec = importlib.util.spec_from_file_location("reference_attention", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "settings",
    [
        {"attention": "maps"},
        {"attention": "maps", "attention_values": "log", "attention_heads": "mean"},
        {"attention": "maps", "attention_keys": 3, "attention_row_share": 0.2},
        {"attention": "qk", "attention_heads": "1", "attention_row_share": 0.4},
    ],
)
def test_two_decoders_read_the_same_attention(
    make_cache: Callable[..., Any], tmp_path: Path, settings: dict[str, Any]
) -> None:
    make_cache(tmp_path / "cache", chat_rows(3), **settings)
    theirs: dict[bytes, Any] = {}
    for path in (tmp_path / "cache/attention").glob("*.safetensors"):
        theirs |= reference().read_shard(path.read_bytes())
    opened = cachekd.open_cache(str(tmp_path / "cache"))
    assert len(theirs) == len(opened)
    for record in opened:
        ours = record.attention
        assert ours is not None
        rows, layers = theirs[record.key]
        assert ours.rows.tolist() == rows
        flat = [row for layer in layers for head in layer for row in head]
        assert len(flat) == len(ours.offsets) - 1
        rests = ours.rest.reshape(-1)
        for i, (kept, rest) in enumerate(flat):
            part = slice(ours.offsets[i], ours.offsets[i + 1])
            assert ours.keys[part].tolist() == list(kept)
            assert ours.probs[part] == pytest.approx(list(kept.values()), abs=1e-5)
            assert rests[i] == pytest.approx(rest, abs=1e-6)


def test_the_reference_decoder_stands_alone() -> None:
    text = PATH.read_text()
    assert "import numpy" not in text and "import cachekd" not in text
