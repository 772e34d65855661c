"""JSONL of every format that has it: broken lines are named, or left out and counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchanging import brought_in, write_lines
from ragged import entries
from tiny import Family

from cachekd import open_cache
from cachekd.errors import DataError
from cachekd.exchange import _json_lines
from cachekd.exchange._bits import pack, width_of
from cachekd.exchange._vocabulary import Vocabulary
from cachekd.types import Record

BROKEN = ['{"input_ids": [1,', "[1, 2]", '{"input_ids": "text"}']


def axolotl(record: Record, vocab: int) -> dict[str, Any]:
    ids, logs = (a.reshape(-1, 10) for a in (record.logits.ids, record.logits.logprobs))
    return {
        "input_ids": record.input_ids.tolist(),
        "target_token_ids": ids.tolist(),
        "target_logprobs": logs.astype(float).tolist(),
    }


def arrow(record: Record, vocab: int) -> dict[str, Any]:
    row = axolotl(record, vocab)
    names = ("input_ids", "token_ids", "logprobs")
    return dict(zip(names, row.values(), strict=True))


def distillkit(record: Record, vocab: int) -> dict[str, Any]:
    ids, logs = (a.reshape(-1, 10) for a in (record.logits.ids, record.logits.logprobs))
    return {
        "input_ids": record.input_ids.tolist(),
        "compressed_logprobs": logs.astype("<f4").view(np.uint8).tolist(),
        "bytepacked_indices": pack(ids.astype(np.int64), width_of(vocab)).tolist(),
    }


def openai(record: Record, vocab: int) -> dict[str, Any]:
    places = [
        {str(i): {"logprob": float(v[0])} for i, v in entries(record.logits, row).items()}
        for row in range(record.logits.rows)
    ]
    ids = record.input_ids.tolist()
    return {"prompt_token_ids": ids, "prompt_logprobs": [None, *places], "choices": [{}]}


@pytest.mark.parametrize("line", [axolotl, arrow, distillkit, openai])
def test_a_broken_line_is_named_or_left_out(
    line: Callable[[Record, int], dict[str, Any]], captured: Path, family: Family, tmp_path: Path
) -> None:
    records = list(open_cache(str(captured)))[:3]
    good = [line(record, family.vocab) for record in records]
    path = write_lines(
        tmp_path / "data.jsonl", [good[0], "", BROKEN[0], good[1], *BROKEN[1:], good[2]]
    )
    settings = {"d": family.vocab, "k": 10, "exact_k": 10, "delta_encoding": False}
    (tmp_path / "compression_config.yaml").write_text(json.dumps(settings))
    with pytest.raises(DataError, match=r"data\.jsonl row 2: line 3: expected one JSON object"):
        brought_in(path, family, tmp_path / "strict", format=line.__name__)
    assert not (tmp_path / "strict").exists()
    report = brought_in(path, family, tmp_path / "in", format=line.__name__, on_bad="skip")
    assert sum(report["documents_left_out"].values()) == 3 and report["samples"] == 3
    cache = open_cache(str(tmp_path / "in"))
    for record in records:
        found = cache.get(record.input_ids).logits
        assert all(entries(found, r) == entries(record.logits, r) for r in range(found.rows))


def test_the_first_line_may_be_broken(captured: Path, family: Family, tmp_path: Path) -> None:
    record = open_cache(str(captured))[0]
    for line in (axolotl, openai):
        path = write_lines(tmp_path / "data.jsonl", [BROKEN[0], line(record, family.vocab)])
        settings = {"format": line.__name__, "on_bad": "skip"}
        report = brought_in(path, family, tmp_path / line.__name__, **settings)
        assert report["samples"] == 1 and sum(report["documents_left_out"].values()) == 1


def test_a_line_without_end_is_not_read(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_json_lines, "LINE_BYTES", 1000)
    path = write_lines(tmp_path / "data.jsonl", ["x" * 2000])
    for name in ("axolotl", "openai"):
        with pytest.raises(DataError, match="line 1: more than 1000 bytes"):
            brought_in(path, family, tmp_path / "in", format=name)


def test_parts_of_a_character_are_known_by_their_bytes(family: Family, tmp_path: Path) -> None:
    """Servers tell half of a character as no text at all; its bytes name the token."""
    vocabulary = Vocabulary(family.teacher)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(family.teacher)
    first, second = tokenizer("é", add_special_tokens=False)["input_ids"]
    assert vocabulary.id_of("\\xc3", [0xC3]) == first
    assert vocabulary.id_of("\ufffd", [0xA9]) == second
    assert vocabulary.id_of("the", [116, 104, 101]) == vocabulary.id_of("the")
    assert vocabulary.id_of("<|end|>", list(b"<|end|>")) == tokenizer.convert_tokens_to_ids(
        "<|end|>"
    )
    for text, data in (("\ufffd", None), ("\ufffd", [0xC3, 0xA9, 0xC3]), ("the", [300])):
        with pytest.raises(
            ValueError, match=r"no tokens|tokens of the tokenizer|expected the bytes"
        ):
            vocabulary.id_of(text, data)
    place = {"token": "\ufffd", "bytes": [0xC3], "logprob": -0.5, "top_logprobs": []}
    place["top_logprobs"] = [{"token": "\ufffd", "bytes": [0xA9], "logprob": -1.5}]
    body = {"prompt_token_ids": [7, 8], "choices": [{"logprobs": {"content": [place]}}]}
    path = write_lines(tmp_path / "data.jsonl", [body])
    brought_in(path, family, tmp_path / "in", format="openai")
    record = open_cache(str(tmp_path / "in"))[0]
    assert record.input_ids.tolist() == [7, 8, first]
    assert {i: v[0] for i, v in entries(record.logits, 1).items()} == {first: -0.5, second: -1.5}
