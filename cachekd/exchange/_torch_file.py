"""Tensors of a file that ``torch.save`` wrote, read as data: nothing of it is run or imported.

Comes in: bytes of the zip archive. Goes out: numbers, text, lists, dictionaries, and tensors as
numpy arrays. The archive's object stream is a small stack language; only the instructions that
plain containers of tensors need are known here, and a global is a name that is looked up in a table
of this module. Whatever else stands in the file is an error.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

_MOST_STEPS = 1 << 20
_MOST_TENSORS = 1 << 16
_DTYPES = {
    "torch HalfStorage": "<f2",
    "torch FloatStorage": "<f4",
    "torch DoubleStorage": "<f8",
    "torch BFloat16Storage": "bfloat16",
    "torch BoolStorage": "|b1",
    "torch ByteStorage": "|u1",
    "torch ShortStorage": "<i2",
    "torch IntStorage": "<i4",
    "torch LongStorage": "<i8",
    "torch uint16": "<u2",
    "torch.storage UntypedStorage": "",
}
_MAKERS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3")
_ORDERED = "collections OrderedDict"


@dataclass(frozen=True, slots=True)
class _Name:
    """A global, by name."""

    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """Bytes of tensors, and their dtype where the storage has one."""

    dtype: str
    data: bytes


_MARK = object()
# What reading bytes that were altered may raise: of zip, of the stack, of numpy.
_DAMAGED = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, struct.error, EOFError, OSError, RuntimeError),
    *(LookupError, TypeError, AttributeError, OverflowError, MemoryError),
)


def load(data: bytes) -> Any:
    """The object that a file holds.

    Raises:
        ValueError: it is no such file, or holds anything but containers of tensors.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check(archive, len(data))
            (program,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            folder = program.removesuffix("data.pkl")
            order = f"{folder}byteorder"
            if order in archive.namelist() and archive.read(order) != b"little":
                raise ValueError("tensors are not little-endian")
            return _Reader(archive.read(program), lambda n: archive.read(f"{folder}data/{n}")).run()
    except _DAMAGED as error:
        raise ValueError(f"no file of torch.save: {error!r:.200}") from error


def _check(archive: zipfile.ZipFile, size: int) -> None:
    """Every member is stored as it is, so that nothing is larger than the archive."""
    members = archive.infolist()
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > size:
        raise ValueError("members of the archive are compressed, or overlap")
    if len(members) > _MOST_TENSORS:
        raise ValueError(f"{len(members)} members in the archive")


class _Reader:
    """The stack machine of an object stream."""

    def __init__(self, program: bytes, storage: Callable[[str], bytes]) -> None:
        self._stream = io.BytesIO(program)
        self._storage = storage
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The object."""
        for _ in range(_MOST_STEPS):
            code = self._stream.read(1)
            if code == b".":
                return self._stack.pop()
            step = _STEPS.get(code)
            if step is None:
                raise ValueError(f"an instruction that no container of tensors needs: {code!r}")
            step(self)
        raise ValueError("an object stream that is too long")

    def number(self, form: str) -> Any:
        """The next number of the stream."""
        return struct.unpack(form, self._stream.read(struct.calcsize(form)))[0]

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def top(self, count: int) -> tuple[Any, ...]:
        """Take the last values off the stack."""
        found = tuple(self._stack[-count:])
        if len(found) != count:
            raise ValueError("the stack is empty")
        del self._stack[-count:]
        return found

    def marked(self) -> tuple[Any, ...]:
        """Take all values since the last mark."""
        found = []
        while (value := self._stack.pop()) is not _MARK:
            found.append(value)
        return tuple(reversed(found))

    def text(self) -> None:
        """A text with its length before it."""
        self.push(self._stream.read(self.number("<I")).decode())

    def long(self) -> None:
        """A whole number of some bytes."""
        self.push(int.from_bytes(self._stream.read(self.number("<B")), "little", signed=True))

    def named(self) -> None:
        """A global: its module and name, a line each."""
        module = self._stream.readline().rstrip(b"\n").decode()
        name = f"{module} {self._stream.readline().rstrip(bytes([10])).decode()}"
        if name not in _DTYPES and name not in _MAKERS and name != _ORDERED:
            raise ValueError(f"it names {name!r:.100}, which is no tensor")
        self.push(_Name(name))

    def keep(self, form: str) -> None:
        """Remember the top of the stack."""
        self._memo[self.number(form)] = self._stack[-1]

    def stored(self) -> None:
        """A storage by its number."""
        (reference,) = self.top(1)
        kind, dtype, number, _, _ = reference
        if kind != "storage" or not isinstance(number, str) or not number.isdigit():
            raise ValueError("a reference that is no storage")
        self.push(_Storage(_DTYPES[dtype.name], self._storage(number)))

    def make(self) -> None:
        """A tensor of a storage, or an empty mapping."""
        maker, arguments = self.top(2)
        self.push({} if maker == _Name(_ORDERED) else _tensor(maker, arguments))

    def append(self, items: tuple[Any, ...]) -> None:
        """Items to the list on top."""
        self._list().extend(items)

    def _list(self) -> list[Any]:
        if not isinstance(self._stack[-1], list):
            raise ValueError("items of what is no list")
        return self._stack[-1]

    def put(self, items: tuple[Any, ...]) -> None:
        """Keys and values to the mapping on top."""
        if not isinstance(self._stack[-1], dict) or len(items) % 2:
            raise ValueError("items of what is no mapping")
        self._stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _tensor(maker: Any, arguments: tuple[Any, ...]) -> np.ndarray:
    """The array of a storage, offset, shape and strides, all within the storage."""
    if not isinstance(maker, _Name) or maker.name not in _MAKERS:
        raise ValueError(f"a call of {maker!r:.100}, which makes no tensor")
    storage, offset, shape, strides = arguments[:4]
    dtype = storage.dtype or _DTYPES[arguments[6].name]
    width = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    if not all(type(size) is int and size >= 0 for size in (offset, *shape, *strides)):
        raise ValueError(f"a tensor of shape {shape!r:.100}")
    count, held = prod(shape), len(storage.data) // width
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    if count and (last >= held or count > held):
        raise ValueError(f"a tensor of shape {shape!r:.100} in {len(storage.data)} bytes")
    bare = "<u2" if dtype == "bfloat16" else dtype
    flat = np.frombuffer(storage.data, bare, held)[offset if count else 0 :]
    steps = [step * width for step in strides]
    array = np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False).copy()
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else array


_STEPS: dict[bytes, Callable[[_Reader], None]] = {
    b"\x80": lambda r: r.number("<B") and None,
    b"}": lambda r: r.push({}),
    b"]": lambda r: r.push([]),
    b")": lambda r: r.push(()),
    b"(": lambda r: r.push(_MARK),
    b"N": lambda r: r.push(None),
    b"\x88": lambda r: r.push(True),
    b"\x89": lambda r: r.push(False),
    b"K": lambda r: r.push(r.number("<B")),
    b"M": lambda r: r.push(r.number("<H")),
    b"J": lambda r: r.push(r.number("<i")),
    b"G": lambda r: r.push(r.number(">d")),
    b"\x8a": _Reader.long,
    b"X": _Reader.text,
    b"c": _Reader.named,
    b"q": lambda r: r.keep("<B"),
    b"r": lambda r: r.keep("<I"),
    b"h": lambda r: r.push(r._memo[r.number("<B")]),
    b"j": lambda r: r.push(r._memo[r.number("<I")]),
    b"t": lambda r: r.push(r.marked()),
    b"\x85": lambda r: r.push(r.top(1)),
    b"\x86": lambda r: r.push(r.top(2)),
    b"\x87": lambda r: r.push(r.top(3)),
    b"Q": _Reader.stored,
    b"R": _Reader.make,
    b"a": lambda r: r.append(r.top(1)),
    b"e": lambda r: r.append(r.marked()),
    b"s": lambda r: r.put(r.top(2)),
    b"u": lambda r: r.put(r.marked()),
}
