"""The score store: small values by 16-byte keys, appended to by many runs, never asked for twice.

Comes in: keys with the bytes that belong to them. Goes out: those bytes, exactly, or a miss. Under
one folder:

    <scores_id>/scores.json    who scored, and what is kept: written once
    <scores_id>/logs/          an append log of each writing process (`score_logs`)
    <scores_id>/segments/      closed logs, merged and indexed (`score_segments`)

A record that is cut off or altered is a miss and is counted; it is never a wrong value. A store
takes 32 bytes of memory for each of its records (new ones some more), and holds each of its files
open.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachekd.config import canonical_json
from cachekd.errors import ConfigError
from cachekd.store.identity import refuse_difference
from cachekd.store.io import Location
from cachekd.store.layout import dump_document, read_document
from cachekd.store.score_index import Place, ScoreIndex
from cachekd.store.score_logs import LOG, LogWriter, is_closed, open_file, read_record, scan
from cachekd.store.score_segments import (
    LOGS,
    SEGMENT,
    SEGMENTS,
    Compacted,
    compact,
    read_file,
)

_FACTS = "scores.json"
_BUFFER = 1 << 20
_MANY_LOGS = 8
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _File:
    """An open file: up to where it was read, and whether more may come."""

    descriptor: int
    read: int
    grows: bool


class ScoreStore:
    """Values by key; one for each process. Other processes may write to the same folder.

    Args:
        folder: local folder of all score stores.
        scores_id: digest of the facts.
        facts: who scores, and what is kept of it, as plain JSON types.

    Raises:
        ConfigError: the folder is not local.
        MismatchError: the store of this id has other facts.
        StoreError: the folder cannot be written to.
    """

    def __init__(self, folder: str, scores_id: str, facts: Mapping[str, Any]) -> None:
        location = Location(f"{folder.rstrip('/')}/{scores_id}")
        if not location.local:
            raise ConfigError(
                f"score_cache: expected a local folder, found {folder}: scores are appended to "
                "files, which object stores cannot do. Name a folder with --score-cache"
            )
        location.check_writable()
        location.create(_FACTS, dump_document("scores", {"facts": dict(facts)}))
        found = read_document(location, "scores", _FACTS)["facts"]
        if canonical_json(found) != canonical_json(dict(facts)):
            refuse_difference("scores", found, facts, f"{location.url}", "this run")
        self._location = location
        self._root = Path(location.path(_FACTS)).parent
        self._index = ScoreIndex()
        self._files: dict[int, _File] = {}
        self._known: dict[str, int] = {}
        self._writer: LogWriter | None = None
        self._own = -1
        self._pending: dict[bytes, bytes] = {}
        self._buffered = 0
        self.damaged = 0
        self.refresh()

    def __len__(self) -> int:
        return len(self._index) + len(self._pending)

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, or None where there is none, or only a damaged one."""
        places = self._index.find(keys)
        return [
            self._pending.get(key) if place is None else self._read(key, place)
            for key, place in zip(keys, places, strict=True)
        ]

    def put(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep values; they are found at once, and by other processes after `flush`.

        Raises:
            StoreError: the disk takes no more.
        """
        for key, value in records:
            if key not in self._pending:
                self._pending[key] = value
                self._buffered += len(value)
        if self._buffered >= _BUFFER:
            self.flush()

    def flush(self, *, sync: bool = False) -> None:
        """Append what is buffered to this process's log.

        Args:
            sync: wait until it is on disk, so that a loss of power does not take it.

        Raises:
            StoreError: the disk takes no more.
        """
        if self._pending:
            writer = self._log_of_mine()
            entries = writer.append(self._pending.items(), self._own)
            self._files[self._own].read = writer.size
            self._pending, self._buffered = {}, 0
            self._index.add(entries)
        if sync and self._writer is not None:
            self._writer.sync()

    def refresh(self) -> None:
        """Take up what other processes have written since."""
        for number, file in self._files.items():
            if file.grows:
                self._grow(number, file)
        for path in sorted((self._root / LOGS).glob(f"[!.]*{LOG}")):
            self._open(path, grows=True)
        # After the logs: one that was merged meanwhile is found in its segment.
        for path in sorted((self._root / SEGMENTS).glob(f"[!.]*{SEGMENT}")):
            self._open(path, grows=False)

    def compact(self) -> Compacted:
        """Merge closed logs; see `score_segments.compact`.

        Raises:
            StoreError: a segment cannot be written.
        """
        done = compact(self._location)
        if done.damaged or done.torn_bytes:
            _log.warning(
                "%s: %d damaged records and %d bytes that a kill cut off were left out; what they "
                "held is scored again",
                self._root,
                done.damaged,
                done.torn_bytes,
            )
        return done

    def close(self) -> None:
        """Write what is buffered, sync, and let the files go; many closed logs are merged.

        Raises:
            StoreError: the disk takes no more.
        """
        self.flush(sync=True)
        for file in self._files.values():
            os.close(file.descriptor)
        self._files, self._known, self._writer = {}, {}, None
        self._index = ScoreIndex()
        if len(list((self._root / LOGS).glob(f"[!.]*{LOG}"))) > _MANY_LOGS:
            self.compact()

    def figures(self) -> dict[str, Any]:
        """Records and bytes of the store, and what of it cannot be read."""
        self.refresh()
        sizes = {number: os.fstat(f.descriptor).st_size for number, f in self._files.items()}
        torn = [
            sizes[number] - file.read
            for number, file in self._files.items()
            if file.read < sizes[number] and is_closed(file.descriptor)
        ]
        return {
            "records": len(self),
            "bytes": sum(sizes.values()) + self._buffered,
            "records_damaged": self.damaged,
            "bytes_torn": sum(torn),
        }

    def _log_of_mine(self) -> LogWriter:
        if self._writer is None:
            self._writer = LogWriter(self._root / LOGS)
            self._own = self._take(
                self._writer.path.name, self._writer.descriptor, self._writer.size, grows=False
            )
        return self._writer

    def _read(self, key: bytes, place: Place) -> bytes | None:
        file, offset, length = place
        value = read_record(self._files[file].descriptor, key, offset, length)
        if value is None:
            self.damaged += 1
            self._index.forget(key)
        return value

    def _open(self, path: Path, *, grows: bool) -> None:
        if path.name in self._known:
            return
        try:
            descriptor = open_file(path)
        except FileNotFoundError:
            return  # merged since it was listed
        number = self._take(path.name, descriptor, 0, grows=grows)
        entries, self._files[number].read = read_file(descriptor, number)
        self._index.add(entries)

    def _take(self, name: str, descriptor: int, read: int, *, grows: bool) -> int:
        number = len(self._files)
        self._files[number] = _File(descriptor, read, grows)
        self._known[name] = number
        return number

    def _grow(self, number: int, file: _File) -> None:
        """Read on in a log whose writer may have gone on."""
        closed = is_closed(file.descriptor)
        size = os.fstat(file.descriptor).st_size
        entries, file.read = scan(file.descriptor, number, file.read, size)
        self._index.add(entries)
        file.grows = not closed
