"""One captured cache, and imports and exports of it in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import capture
from tiny import Family, chat_rows, write_rows


@pytest.fixture(scope="module")
def captured(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve samples of the real tiny teacher, ten entries a row, all rows. Read only."""
    folder = tmp_path_factory.mktemp("captured")
    data = write_rows(folder / "data.jsonl", chat_rows(12))
    capture(family, data, folder / "c", logits_selection="top_k", logits_top_k=10, writers=0)
    return folder / "c"
