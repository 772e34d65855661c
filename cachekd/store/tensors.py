"""The safetensors container, read without copies and without trust.

Shards are written by the safetensors library, so any tool of that family opens them. They are read
here as views of a memory-mapped buffer: offsets and shapes are checked against the file's size
before a view is made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import save

from cachekd.data import limits, strict
from cachekd.errors import CorruptCache

_DTYPES = {"U8": "<u1", "I32": "<i4", "I64": "<i8"}


def dump_tensors(
    tensors: Mapping[str, NDArray[np.generic]], metadata: Mapping[str, str]
) -> pa.Buffer:
    """Arrays and text as the bytes of a safetensors file; a function of its content."""
    return pa.py_buffer(_sorted_header(save(dict(tensors), dict(metadata))))


def _sorted_header(data: bytes) -> bytes:
    """The file with the keys of its header sorted: the library writes metadata in any order."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def load_tensors(data: pa.Buffer) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Views of the arrays of a file, and its metadata.

    Raises:
        CorruptCache: the header does not parse, or does not fit the size of the file.
    """
    view = memoryview(data)
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 or length > min(limits.HEADER_BYTES, len(view) - 8):
        raise CorruptCache(f"a header of {length} bytes in a file of {len(view)}")
    try:
        header = strict.fields(
            strict.parse_json(bytes(view[8 : 8 + length]), most_values=limits.HEADER_VALUES)
        )
        texts = strict.fields(header.pop("__metadata__", {}))
        metadata = {name: strict.text(value) for name, value in texts.items()}
        if len(header) > limits.TENSORS:
            raise CorruptCache(f"{len(header)} tensors; at most {limits.TENSORS} are read")
        return _arrays(view[8 + length :], header), metadata
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptCache(f"its safetensors header cannot be read: {error!r:.300}") from error


def _arrays(body: memoryview, header: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Views of tensors that lie one behind the other and fill the file."""
    spans = {name: _span(entry, len(body)) for name, entry in header.items()}
    end = 0
    for start, stop in sorted(spans.values()):
        if start != end:
            raise CorruptCache("its tensors overlap, or leave a hole")
        end = stop
    if end != len(body):
        raise CorruptCache("its tensors do not fill the file")
    return {
        name: np.frombuffer(body[start:stop], header[name]["dtype"]).reshape(header[name]["shape"])
        for name, (start, stop) in spans.items()
    }


def _dimension(value: Any) -> int:
    return strict.whole(value, limits.SHARD_BYTES)


def _span(entry: dict[str, Any], size: int) -> tuple[int, int]:
    """Where a tensor lies in the body; its type becomes that of numpy."""
    entry["dtype"] = np.dtype(_DTYPES[entry["dtype"]])
    shape = strict.listed(entry["shape"], limits.DIMENSIONS, _dimension)
    start, stop = (strict.whole(offset, size) for offset in entry["data_offsets"])
    if stop - start != math.prod(shape) * entry["dtype"].itemsize:
        raise CorruptCache(f"a tensor of shape {shape} has {stop - start} bytes")
    return start, stop
