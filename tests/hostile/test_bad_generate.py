"""Bad input to ``cachekd precompute --generate``: refused before the teacher is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import write_rows


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--generate beam", "greedy"),
        ("--max-new-tokens 20", "max_new_tokens: found 20 with generate none"),
        ("--generate greedy --generation-temperature 0.7", "set generate to sample"),
        ("--generate greedy --generation-samples 2", "set generate to sample"),
        ("--generation-seed 1", "set generate to sample"),
        ("--generate sample --max-new-tokens 0", "expected 1 or more"),
        ("--generate sample --generation-temperature 0", "set generate to greedy"),
        ("--generate sample --generation-top-p 1.5", "expected 0 < p <= 1"),
        ("--generate sample --generation-top-k -1", "expected 0 or more"),
        ("--generate sample --generation-samples 0", "expected 1 or more"),
        (f"--generate sample --generation-seed {1 << 63}", "expected less than 2^63"),
        ("--generate sample --on-long split", "cannot be split"),
    ],
)
def test_settings_of_written_responses(
    refused: Callable[..., str], flags: str, message: str
) -> None:
    assert message in refused(*flags.split(), code=2)


def test_a_backend_that_cannot_write(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cachekd.teachers.hf import HFTeacher

    monkeypatch.delattr(HFTeacher, "write")
    assert "writes none; use --backend hf" in refused("--generate", "greedy", code=2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "the cat sleeps"}, "found text alone"),
        ({"input_ids": [4, 5, 6], "labels": [-100, 5, 6]}, "found text alone"),
        ({"prompt": "", "completion": "the cat"}, "of at least one token"),
        ({"messages": [{"role": "user", "content": "a dog"}]}, "an assistant turn at the end"),
    ],
)
def test_rows_that_ask_for_nothing(
    refused: Callable[..., str], tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [row])
    found = refused("--generate", "greedy", "--max-new-tokens", 8, data=data)
    assert message in found and "row 0" in found and "--on-bad skip" in found


def test_no_room_for_a_response(refused: Callable[..., str]) -> None:
    """A context of 128 tokens, and 256 new ones by default."""
    message = refused("--generate", "greedy")
    assert "expected at most 128 tokens, found a prompt of" in message
    assert "256 new ones. Lower --max-new-tokens" in message


def test_a_teacher_that_gives_no_numbers_writes_nothing(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cachekd.teachers import _writing

    whole = _writing.next_tokens
    monkeypatch.setattr(
        _writing, "next_tokens", lambda logits, *further: whole(logits * float("nan"), *further)
    )
    message = refused("--generate", "sample", "--max-new-tokens", 8, loads=True)
    assert "NaN or infinite" in message and "row" in message
