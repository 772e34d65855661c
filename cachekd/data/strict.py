"""JSON from files that nobody vouches for, and the types of what stands in it.

Comes in: bytes of a file. Goes out: plain values within `cachekd.data.limits`, or a `ValueError`
that says what is wrong; callers name the file. Python's own parser takes NaN, numbers that
overflow, repeated keys, true for 1 and any depth: none of these is in a file of ours.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from cachekd.data import limits

_PART = 1 << 24
_QUOTE, _OPEN, _CLOSE, _BETWEEN = 1, 2, 4, 8
_KINDS = np.zeros(256, np.uint8)
for _signs, _kind in ((b'"', _QUOTE), (b"[{", _OPEN), (b"]}", _CLOSE), (b",", _BETWEEN)):
    _KINDS[list(_signs)] = _kind
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{32}")
_Item = TypeVar("_Item")


def parse_json(
    data: bytes,
    *,
    most_bytes: int = limits.DOCUMENT_BYTES,
    most_values: int = limits.DOCUMENT_VALUES,
) -> Any:
    """A JSON value, after its size, depth and number of values were looked at.

    Raises:
        ValueError: it is too large or too deep, or not JSON in the narrow sense.
    """
    if len(data) > most_bytes:
        raise ValueError(f"{len(data)} bytes of JSON; at most {most_bytes} are read")
    _check_shape(data, most_values)
    try:
        return json.loads(
            data.decode(),
            parse_constant=_no_constant,
            parse_float=_finite,
            object_pairs_hook=_object,
        )
    except RecursionError as error:  # the caller's own stack is nearly used up
        raise ValueError("it is nested too deep") from error


def _check_shape(data: bytes, most_values: int) -> None:
    """Refuse too many values or levels; strings are looked past, and little memory is taken."""
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in data else data
    values, depth, inside = 1, 0, 0
    for start in range(0, len(bare), _PART):
        kinds = _KINDS[np.frombuffer(bare, np.uint8, min(_PART, len(bare) - start), start)]
        quoted = np.bitwise_xor.accumulate(kinds & _QUOTE) ^ inside
        inside = int(quoted[-1])
        kinds = kinds[quoted == 0]
        values += int(np.count_nonzero(kinds & (_OPEN | _BETWEEN)))
        if values > most_values:
            raise ValueError(f"it holds more than {most_values} values")
        kinds = kinds[(kinds & (_OPEN | _CLOSE)) > 0]
        depths = depth + np.where(kinds == _OPEN, 1, -1).cumsum(dtype=np.int64)
        if depths.max(initial=0) > limits.DOCUMENT_DEPTH:
            raise ValueError(f"it has more than {limits.DOCUMENT_DEPTH} levels")
        depth = int(depths[-1]) if len(depths) else depth


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large for a number")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object names a key twice")
    return found


def whole(value: Any, most: int, least: int = 0) -> int:
    """The value if it is a whole number between ``least`` and ``most``, and no boolean.

    Raises:
        ValueError: it is not.
    """
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"expected a whole number from {least} to {most}; found {value!r:.80}")
    return value


def number(value: Any) -> float:
    """The value if it is a finite number, and no boolean.

    Raises:
        ValueError: it is not.
    """
    if type(value) not in (int, float) or not abs(value) < sys.float_info.max:
        raise ValueError(f"expected a finite number; found {value!r:.80}")
    return float(value)


def text(value: Any) -> str:
    """The value if it is text.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str):
        raise ValueError(f"expected text; found {value!r:.80}")
    return value


def digest(value: Any) -> str:
    """The value if it is a sha256 in lower-case hex: what files are named by.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError(f"expected a sha256 of 64 hex digits; found {value!r:.80}")
    return value


def short_id(value: Any) -> str:
    """The value if it is a blake2b-128 in lower-case hex: what identities are named by.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ValueError(f"expected an id of 32 hex digits; found {value!r:.80}")
    return value


def fields(value: Any) -> dict[str, Any]:
    """The value if it is an object.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"expected an object; found {value!r:.80}")
    return dict(value)


def counts(value: Any) -> dict[str, int]:
    """The value if it is an object of whole numbers from 0 to 2^63 - 1.

    Raises:
        ValueError: it is not.
    """
    return {name: whole(count, 2**63 - 1) for name, count in fields(value).items()}


def listed(value: Any, most: int, item: Callable[[Any], _Item]) -> tuple[_Item, ...]:
    """The items of a list, each checked.

    Raises:
        ValueError: it is no list, it is too long, or an item is refused.
    """
    if not isinstance(value, list) or len(value) > most:
        size = len(value) if isinstance(value, list) else repr(value)[:80]
        raise ValueError(f"expected a list of at most {most}; found {size}")
    return tuple(map(item, value))


def distinct(items: Iterable[_Item]) -> tuple[_Item, ...]:
    """The items, of which no two are equal.

    Raises:
        ValueError: two are equal.
    """
    found = tuple(items)
    if len(set(found)) != len(found):
        raise ValueError("a name stands twice in a list")
    return found
