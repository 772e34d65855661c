"""Reading rows from data files, URLs and the `datasets` library.

In: the names that a user gives as data. Out: rows as plain dictionaries, with the name of their
source and their number in it, from 0. Nothing is interpreted here: see `cachekd.data.columns`.
"""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from cachekd.config import DataConfig
from cachekd.errors import DataError

Row = dict[str, Any]

# The csv module refuses fields of more than 128 KiB unless told otherwise; documents are longer.
_LONGEST_FIELD = 2**31 - 1


def read_rows(config: DataConfig) -> Iterator[tuple[str, int, Row]]:
    """All rows of all sources, in the order given, at most ``config.max_samples``.

    Yields:
        Source name (the base name of a file, or the name of a dataset), row number, row.

    Raises:
        DataError: a source is missing, empty, a folder, of an unknown kind, or broken.
    """
    rows = (row for name in config.data for row in _read_source(name, config))
    return islice(rows, config.max_samples)


def first_rows(config: DataConfig) -> Iterator[tuple[str, int, Row]]:
    """The first row of each source that is a file: what shows wrong columns before all is read.

    Yields:
        as `read_rows`.

    Raises:
        DataError: see `read_rows`.
    """
    for name in config.data:
        if _is_file(name):
            yield next(_read_source(name, config))


def _read_source(name: str, config: DataConfig) -> Iterator[tuple[str, int, Row]]:
    if _is_file(name):
        source, rows = PurePosixPath(name).name, _read_file(name)
    else:
        source, rows = name, _read_dataset(name, config)
    count = 0
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(
                f"{source} row {number}: expected an object, found {type(row).__name__}"
            )
        yield source, number, row
        count = number + 1
    if not count:
        raise DataError(f"{source}: expected rows, found none; the source is empty")


def _is_file(name: str) -> bool:
    if "://" in name or _suffix(name) in _READERS:
        return True
    filesystem, path = fsspec.core.url_to_fs(name)
    if filesystem.isdir(path):
        inside = sorted(PurePosixPath(entry).name for entry in filesystem.ls(path, detail=False))
        shown = ", ".join(inside[:10]) + (", ..." if len(inside) > 10 else "")
        raise DataError(
            f"{name}: expected a data file, found a folder with: {shown or 'nothing'}. "
            "Name the files; --data may be repeated"
        )
    return bool(filesystem.exists(path))


def _suffix(name: str) -> str:
    path = PurePosixPath(name)
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _read_file(name: str) -> Iterator[Any]:
    reader = _READERS.get(_suffix(name))
    if reader is None:
        raise DataError(
            f"{name}: expected one of {', '.join(_READERS)} (.gz too), found {_suffix(name)!r}"
        )
    source = PurePosixPath(name).name
    try:
        with fsspec.open(name, "rb", compression="infer") as file:
            yield from reader(file, source)
    except FileNotFoundError:
        raise DataError(f"{name}: there is no such file; check the path") from None
    except (OSError, EOFError, zlib.error, ValueError, ImportError, pa.ArrowException) as error:
        raise DataError(f"{name}: the file cannot be read: {error}") from error


def _read_jsonl(file: BinaryIO, source: str) -> Iterator[Any]:
    for number, line in enumerate(file):
        if line.isspace():
            continue
        try:
            yield json.loads(_decode(line, number))
        except ValueError as error:
            raise DataError(
                f"{source} line {number + 1}: expected one JSON object a line; {error}"
            ) from error


def _read_json(file: BinaryIO, source: str) -> Iterator[Any]:
    try:
        content = json.loads(file.read().decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{source}: expected a JSON file; {error}") from error
    if isinstance(content, dict):
        content = next((content[key] for key in ("data", "rows") if key in content), content)
    if not isinstance(content, list):
        raise DataError(
            f"{source}: expected a list of objects, alone or under 'data' or 'rows'; found "
            f"{type(content).__name__}"
        )
    yield from content


def _read_csv(file: BinaryIO, source: str) -> Iterator[Any]:
    csv.field_size_limit(_LONGEST_FIELD)
    lines = (_decode(line, number) for number, line in enumerate(file))
    reader = csv.DictReader(lines, strict=True)
    try:
        for row in reader:
            if None in row:
                raise DataError(
                    f"{source} line {reader.line_num}: expected "
                    f"{len(reader.fieldnames or ())} fields as in the header, found more"
                )
            yield row
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{source} near line {reader.reader.line_num}: not valid CSV: {error}"
        ) from error


def _decode(line: bytes, number: int) -> str:
    """Text of a line; only the first may begin with a byte order mark."""
    return line.decode("utf-8" if number else "utf-8-sig")


def _read_parquet(file: BinaryIO, source: str) -> Iterator[Any]:
    for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
        yield from batch.to_pylist()


_READERS: dict[str, Callable[[BinaryIO, str], Iterator[Any]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _read_dataset(name: str, config: DataConfig) -> Iterator[Any]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{name}: there is no such file, and reading it as a dataset needs the datasets "
            "library: pip install 'cachekd[datasets]'"
        ) from error
    try:
        rows = datasets.load_dataset(name, config.dataset_config, split=config.split)
    except Exception as error:  # the library raises errors of many unrelated kinds
        raise DataError(
            f"{name}: there is no such file, and datasets cannot load it (split "
            f"{config.split!r}, configuration {config.dataset_config!r}): {error}"
        ) from error
    return iter(rows)
