"""Teachers that write, watched."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cachekd.capture import generate
from cachekd.teachers import PromptDraw, WritingSpec
from cachekd.teachers.dummy import DummyTeacher
from cachekd.types import Int32


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, int]]:
    """Responses that dummy teachers were asked for, and every batch is committed."""
    asked: list[tuple[bytes, int]] = []
    write = DummyTeacher.write

    def counted(
        self: DummyTeacher, prompts: Sequence[PromptDraw], spec: WritingSpec
    ) -> list[Int32]:
        asked.extend((prompt.input_ids.tobytes(), prompt.number) for prompt in prompts)
        return write(self, prompts, spec)

    monkeypatch.setattr(DummyTeacher, "write", counted)
    monkeypatch.setattr(generate, "COMMIT_SECONDS", 0.0)
    return asked
