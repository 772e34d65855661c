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

from cachekd.errors import CorruptCache

_DTYPES = {"U8": "<u1", "I32": "<i4", "I64": "<i8"}
_HEADER_LIMIT = 1 << 24


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
    if len(view) < 8 or length > min(_HEADER_LIMIT, len(view) - 8):
        raise CorruptCache(f"a header of {length} bytes in a file of {len(view)}")
    try:
        header = json.loads(bytes(view[8 : 8 + length]))
        metadata = {str(k): str(v) for k, v in header.pop("__metadata__", {}).items()}
        body = view[8 + length :]
        arrays = {str(name): _array(body, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptCache(f"its safetensors header cannot be read: {error!r}") from error
    if sum(array.nbytes for array in arrays.values()) != len(body):
        raise CorruptCache("its tensors do not fill the file")
    return arrays, metadata


def _array(body: memoryview, entry: Mapping[str, Any]) -> NDArray[Any]:
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    shape = [int(size) for size in entry["shape"]]
    start, end = (int(offset) for offset in entry["data_offsets"])
    count = math.prod(shape)
    if min([*shape, start], default=0) < 0 or end > len(body):
        raise CorruptCache("a tensor reaches out of the file")
    if end - start != count * dtype.itemsize:
        raise CorruptCache(f"a tensor of shape {shape} has {end - start} bytes")
    return np.frombuffer(body[start:end], dtype=dtype).reshape(shape)
