"""The journal of a reproduction: what was measured, so that a stopped one continues where it was.

In: records, as they are made. Out: ``runs.jsonl`` in the work folder, a line each, and what is in
it. A line that a kill left half-written is taken away; the run that it was of is run again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cachekd.errors import ConfigError


class Journal:
    """Records by kind and key.

    Args:
        path: of the file; its folder is made.
        settings: what all records depend on.

    Raises:
        ConfigError: the file is of other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._records = _whole_lines(path)
        if not self._records:
            self._write({"settings": dict(settings)})
        recorded = self._records[0].get("settings", {})
        for name in sorted({*recorded, *settings}):
            if recorded.get(name) != settings.get(name):
                raise ConfigError(
                    f"{path} holds runs with {name} {recorded.get(name)!r}; now it is "
                    f"{settings.get(name)!r}. Take another work folder, or go back to that"
                )

    def find(self, kind: str, **key: Any) -> dict[str, Any] | None:
        """The record of a kind whose entries are these, or None."""
        for record in self._records[1:]:
            if record["kind"] == kind and all(record.get(k) == v for k, v in key.items()):
                return record
        return None

    def add(self, kind: str, **record: Any) -> dict[str, Any]:
        """Append a record; it is on the disk when this returns."""
        return self._write({"kind": kind, **record})

    def all(self, kind: str) -> list[dict[str, Any]]:
        """All records of a kind, in their order."""
        return [record for record in self._records[1:] if record["kind"] == kind]

    def _write(self, record: dict[str, Any]) -> dict[str, Any]:
        line = json.dumps(record)
        with self._path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._records.append(json.loads(line))  # as it will be read
        return self._records[-1]


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Records of a file that may end within a line, which is cut off."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]
