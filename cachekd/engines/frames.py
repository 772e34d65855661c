"""Python objects over a pipe between the teacher's process and its writers.

A frame is an object pickled with its arrays beside it, so that no array is copied on the way to
the pipe: uint64 length of the pickle, uint32 number of buffers, uint64 length of each, then pickle
and buffers. Only a process and its own child speak this; nothing of a cache is unpickled.
"""

from __future__ import annotations

import pickle
import struct
from typing import IO, Any

_HEAD = struct.Struct("<QI")


def send(stream: IO[bytes], value: Any) -> None:
    """Write an object.

    Raises:
        OSError: the other side is gone.
    """
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    stream.write(_HEAD.pack(len(data), len(views)))
    stream.write(struct.pack(f"<{len(views)}Q", *(view.nbytes for view in views)))
    stream.write(data)
    for view in views:
        stream.write(view)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read an object.

    Raises:
        EOFError: the other side ended, between two frames or within one.
    """
    size, count = _HEAD.unpack(_exactly(stream, _HEAD.size))
    lengths = struct.unpack(f"<{count}Q", _exactly(stream, 8 * count))
    data = _exactly(stream, size)
    arrays, place, buffers = memoryview(_exactly(stream, sum(lengths))), 0, []
    for length in lengths:
        buffers.append(arrays[place : place + length])
        place += length
    return pickle.loads(data, buffers=buffers)  # noqa: S301 - from our own parent or child


def _exactly(stream: IO[bytes], size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the other process ended")
        view = view[count:]
    return data
