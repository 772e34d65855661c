"""Scored units over a pipe from the teacher's process to its writers, and answers back.

A frame is JSON and the arrays that it speaks of: uint64 length of the JSON, uint64 length of the
arrays, then both. An array is ``[dtype, count]`` in the JSON, in the order of the bytes. Nothing
else than plain values can be sent, so nothing can be run by reading.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import IO, Any

import numpy as np

from cachekd import errors
from cachekd.codecs import CodecHeader
from cachekd.data.attention import AttentionSpec
from cachekd.store.attention_shards import EncodedAttention
from cachekd.store.commit import ScoredUnit, Sink
from cachekd.store.skipped import dump_skipped, load_skipped
from cachekd.types import TopKLogits

_HEAD = struct.Struct("<QQ")
_ARRAYS = ("offsets", "ids", "logprobs", "weights", "tail", "next_logprob", "entropy")


def send_sink(stream: IO[bytes], sink: Sink) -> None:
    """Write where units go (`OSError` where the other side is gone)."""
    _send(stream, {**asdict(sink), "header": sink.header.to_json()}, [])


def receive_sink(stream: IO[bytes]) -> Sink:
    """Read where units go (`EOFError` where the other side ended)."""
    value, _ = _receive(stream)
    spec = value["attention"]
    return Sink(
        **{
            **value,
            "header": CodecHeader.from_json(value["header"]),
            "attention": AttentionSpec.from_json(spec) if spec is not None else None,
        }
    )


def send_unit(stream: IO[bytes], unit: ScoredUnit) -> None:
    """Write a unit (`OSError` where the other side is gone)."""
    arrays: list[np.ndarray] = []
    value = {
        "number": unit.number,
        "keys": [base64.b64encode(key).decode() for key in unit.keys],
        "numerics": dict(unit.numerics),
        "seconds": unit.seconds,
        **dump_skipped(unit.skipped),
        "targets": [_shape(target) for target in unit.targets],
        "layers": [len(kept.layers) for kept in unit.attention or ()],
    }
    for document, target in zip(unit.documents, unit.targets, strict=True):
        arrays += [document, *_arrays(target)]
    for kept in unit.attention or ():
        arrays += [kept.rows, *(np.frombuffer(layer, np.uint8) for layer in kept.layers)]
    _send(stream, value, arrays)


def receive_unit(stream: IO[bytes]) -> ScoredUnit:
    """Read a unit (`EOFError` where the other side ended)."""
    value, arrays = _receive(stream)
    documents, targets = [], []
    for shape in value["targets"]:
        documents.append(next(arrays))
        named: dict[str, Any] = {
            name: next(arrays) if name != "weights" or shape["weights"] else None
            for name in _ARRAYS
        }
        lognorm = {float(t): next(arrays) for t in shape["temperatures"]}
        targets.append(TopKLogits(**named, lognorm=lognorm, vocab_size=shape["vocab_size"]))
    attention = [
        EncodedAttention(
            rows=next(arrays), layers=tuple(next(arrays).tobytes() for _ in range(count))
        )
        for count in value["layers"]
    ]
    return ScoredUnit(
        number=value["number"],
        keys=tuple(base64.b64decode(key) for key in value["keys"]),
        documents=documents,
        targets=targets,
        attention=attention or None,
        numerics=value["numerics"],
        seconds=value["seconds"],
        skipped=load_skipped(value),
    )


@dataclass(frozen=True, slots=True)
class Done:
    """A unit that a writer committed.

    Attributes:
        seconds: that it took.
        happened: what happened on the way and how often, as reports tell it.
    """

    seconds: float
    happened: Mapping[str, int]


def send_answer(stream: IO[bytes], answer: Done | Exception, trace: str = "") -> None:
    """Write what a unit took, or the error that stopped it."""
    if isinstance(answer, Exception):
        _send(stream, {"error": type(answer).__name__, "text": str(answer), "trace": trace}, [])
    else:
        _send(stream, asdict(answer), [])


def receive_answer(stream: IO[bytes]) -> Done | Exception:
    """Read an answer; an error of cachekd comes back as its class, another one as its text."""
    value, _ = _receive(stream)
    if "error" not in value:
        return Done(**value)
    kind = getattr(errors, value["error"], None)
    error: Exception = (
        kind(value["text"])
        if isinstance(kind, type) and issubclass(kind, errors.CachekdError)
        else RuntimeError(f"{value['error']}: {value['text']}")
    )
    error.add_note("in a writer's process:\n" + value["trace"])
    return error


def _shape(target: TopKLogits) -> dict[str, Any]:
    return {
        "weights": target.weights is not None,
        "temperatures": list(target.lognorm),
        "vocab_size": target.vocab_size,
    }


def _arrays(target: TopKLogits) -> list[np.ndarray]:
    named = [getattr(target, name) for name in _ARRAYS]
    return [array for array in named if array is not None] + list(target.lognorm.values())


def _send(stream: IO[bytes], value: dict[str, Any], arrays: list[np.ndarray]) -> None:
    kinds = [[array.dtype.str, array.size] for array in arrays]
    text = json.dumps({"value": value, "arrays": kinds}).encode()
    stream.write(_HEAD.pack(len(text), sum(array.nbytes for array in arrays)))
    stream.write(text)
    for array in arrays:
        stream.write(np.ascontiguousarray(array).data)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[dict[str, Any], Iterator[np.ndarray]]:
    size, total = _HEAD.unpack(_exactly(stream, _HEAD.size))
    content = json.loads(_exactly(stream, size))
    return content["value"], _cut(content["arrays"], _exactly(stream, total))


def _cut(kinds: list[tuple[str, int]], data: bytearray) -> Iterator[np.ndarray]:
    place = 0
    for dtype, count in kinds:
        array = np.frombuffer(data, dtype=np.dtype(dtype), count=count, offset=place)
        place += array.nbytes
        yield array


def _exactly(stream: IO[bytes], size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the other process ended")
        view = view[count:]
    return data
