"""Export: the records of a sealed cache in another tool's format, whole or not at all.

Comes in: an `ExportConfig`. Goes out: a folder of Parquet files with a README, and a report. Files
are written into a folder of a temporary name beside the final one, in parts of ``shard_size``; it
gets its name when all of them are there. A record is read when it is written.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cachekd.config import ExportConfig
from cachekd.errors import ConfigError, StoreError
from cachekd.exchange import Format, Writing
from cachekd.plugins import find
from cachekd.store.names import shown
from cachekd.store.reader import Cache, open_cache

_TOKENS = 1 << 14
_ENTRIES = 1 << 26  # at once: lists count their values in 32 bits
_TEMPORARY = ".exporting-"
_log = logging.getLogger(__name__)
Show = Callable[[int, int], None]


def export_cache(config: ExportConfig, *, progress: Show | None = None) -> dict[str, Any]:
    """Write a cache in another format.

    Args:
        config: see `ExportConfig`.
        progress: called with samples done, and how many there are.

    Returns:
        a report of plain JSON types: samples, rows, bytes, files, and what the format lost.

    Raises:
        ConfigError: the format cannot hold what the cache holds, or the folder is not empty.
        StoreError: the folder cannot be written; nothing is left of it.
        CorruptCache: a record of the cache cannot be read.
    """
    started = time.monotonic()
    plugin: Format = find("exchange", config.format)
    out = _checked_out(config.out)
    cache = open_cache(config.cache, attention=False)
    writing = plugin.write(config, cache)
    lost = [*writing.lost, *(["attention"] if cache.identity.attention is not None else [])]
    with _folder(out) as folder:
        files, rows = _write(folder, cache, writing, config.shard_bytes(), progress)
        for name, text in {**writing.files, "README.md": _readme(config, cache, writing)}.items():
            (folder / name).write_text(text, encoding="utf-8")
        sizes = [(folder / name).stat().st_size for name in files]
    if lost:
        _log.warning("%s: %s holds no %s", config.out, config.format, ", ".join(lost))
    return {
        "cache": shown(config.cache),
        "format": config.format,
        "out": config.out,
        "samples": len(cache),
        "targets": rows,
        "files": len(files),
        "bytes": sum(sizes),
        "lost": lost,
        "seconds": time.monotonic() - started,
    }


def _checked_out(given: str) -> Path:
    """The folder that is made, in full: one that can get its name by a rename.

    Raises:
        ConfigError: there is something else of that name, or it is no folder of this machine.
    """
    if "://" in given:
        raise ConfigError(f"out: expected a folder of this machine; found {shown(given)}")
    out = Path(os.path.abspath(given))
    if out.is_symlink() or out.is_mount() or out == Path.cwd():
        kind = "a link" if out.is_symlink() else "a mount point or the folder you are in"
        raise ConfigError(
            f"out: {out} is {kind}, which cannot be replaced by what is written; name a folder "
            "below it"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out: {out} is there already, and not empty; name another folder")
    return out


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """Within: a folder that gets its final name at the end, or goes.

    Raises:
        StoreError: it cannot be written.
    """
    folder = out.with_name(f"{_TEMPORARY}{out.name}-{secrets.token_hex(4)}")
    try:
        folder.mkdir(parents=True)
        try:
            yield folder
            os.replace(folder, out)  # an empty folder of that name gives way
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise StoreError(
            f"cannot write {out}: {error.strerror or error}. Nothing is left of it; free space or "
            "fix access, then run the same command again"
        ) from error


def _write(
    folder: Path, cache: Cache, writing: Writing, shard_bytes: int, progress: Show | None
) -> tuple[list[str], int]:
    """Files by name, and rows of targets."""
    parts: list[Path] = []
    writer: pq.ParquetWriter | None = None
    rows = 0
    try:
        for numbers in _groups(cache, writing.width):
            records = cache.read(numbers)
            rows += sum(record.logits.rows for record in records)
            if writer is None:
                parts.append(folder / f"part-{len(parts):05d}")
                settings: Any = {"compression": "zstd", "write_page_checksum": True}
                writer = pq.ParquetWriter(parts[-1], writing.schema, **settings)
            writer.write_batch(writing.table(records))
            if parts[-1].stat().st_size >= shard_bytes:
                writer.close()
                writer = None
            if progress is not None:
                progress(numbers.stop, len(cache))
    finally:
        if writer is not None:
            writer.close()
    return _named(parts), rows


def _groups(cache: Cache, width: int) -> Iterator[range]:
    """Numbers of samples that are written at once: some ten thousand tokens, fewer of wide rows."""
    most = max(1, min(_TOKENS, _ENTRIES // max(1, width)))
    start = tokens = 0
    for number, length in enumerate(cache.lengths.tolist()):
        tokens += length
        if tokens >= most or number == len(cache) - 1:
            yield range(start, number + 1)
            start, tokens = number + 1, 0


def _named(parts: list[Path]) -> list[str]:
    """Files under the names that `datasets` knows as one split."""
    names = [f"train-{i:05d}-of-{len(parts):05d}.parquet" for i in range(len(parts))]
    for part, name in zip(parts, names, strict=True):
        part.rename(part.with_name(name))
    return names


def _readme(config: ExportConfig, cache: Cache, writing: Writing) -> str:
    provenance, identity = cache.identity.provenance, cache.identity
    asserted = " (asserted, not known)" if "asserted" in identity.source else ""
    facts = {
        "Teacher": f"{provenance.get('teacher')}{asserted}",
        "Revision": provenance.get("revision") or "not given",
        "Source id": identity.source_id,
        "Capture id": identity.capture_id,
        "Root digest": cache.root,
        "Vocabulary": identity.source["vocab_size"],
        "Samples": len(cache),
        "Not held by this format": ", ".join(writing.lost) or "nothing",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return (
        "---\ntags:\n- knowledge-distillation\nconfigs:\n- config_name: default\n"
        "  data_files: train-*.parquet\n---\n\n"
        f"# Teacher targets in the format of {config.format}\n\nWritten by cachekd.\n\n"
        f"| | |\n|---|---|\n{table}\n\n{writing.notes}\n"
    )
