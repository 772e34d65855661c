"""Responses that a teacher wrote: files of a cache that an interrupted run continues from.

Comes in: responses as they are written, a few at a time. Goes out: files named by what they were
written with and by their own bytes, and `Responses`, which finds them again. They are beside the
content of a cache: what was made of them are samples and targets like any others, so a seal does
not name them, and they may be deleted when the run is done.
"""

from __future__ import annotations

import hashlib
import re
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cachekd.data import limits
from cachekd.data.digests import KEY_BYTES, bytes_digest
from cachekd.data.packed import Keys, Places
from cachekd.data.spool import Spool
from cachekd.errors import CorruptCache
from cachekd.store.io import Location
from cachekd.store.layout import GENERATED, generated_name
from cachekd.store.tables import (
    RESPONSES,
    digests_column,
    flat_column,
    list_column,
    numpy_of,
    packed_of,
    read_table,
    write_table,
)
from cachekd.types import Int32, Int64

_NAME = re.compile(r"([0-9a-f]{32})-([0-9a-f]{64})\.parquet")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Response:
    """Token ids that a teacher wrote after a prompt.

    Attributes:
        prompt: sample key of the prompt's token ids.
        number: which of its responses to this prompt, from 0.
        input_ids: int32, at least one, the end token last if it came to an end.
    """

    prompt: bytes
    number: int
    input_ids: Int32


def draw_key(prompt: bytes, number: int) -> bytes:
    """What a response is found by: its prompt and its number."""
    packed = prompt + struct.pack("<q", number)
    return hashlib.blake2b(packed, digest_size=KEY_BYTES).digest()


class Responses:
    """Responses of one recipe; their token ids wait on disk.

    Args:
        tables: rows as `write_responses` made them; of two that answer one draw the first counts.
    """

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        self._spool, self._ends, self._last = Spool(), array("q", [0]), array("i")
        draws = bytearray()
        for table in tables:
            numbers = numpy_of(table["number"]).tolist()
            keys = packed_of(table["prompt"].combine_chunks())
            for prompt, number in zip(keys, numbers, strict=True):
                draws += draw_key(prompt, number)
            offsets, values = _lists(table)
            self._spool.append(values.tobytes())
            self._ends.extend((offsets[1:] + self._ends[-1]).tolist())
            self._last.frombytes(values[offsets[1:] - 1].tobytes())
        self._places = Places(Keys(np.frombuffer(bytes(draws), f"S{KEY_BYTES}")))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def find(self, draws: Keys) -> Int64:
        """Place of each of these draws, or -1 where it is not written."""
        return self._places.find(draws)

    def last_tokens(self, places: Int64) -> Int32:
        """The last token of each of these responses."""
        return np.array(self._last, np.int32)[places]

    def __getitem__(self, place: int) -> Int32:
        """Token ids of the response at a place."""
        start, end = self._ends[place], self._ends[place + 1]
        return np.frombuffer(self._spool.read(4 * start, 4 * (end - start)), np.int32)


def write_responses(location: Location, recipe: str, responses: Sequence[Response]) -> str:
    """Commit responses that were written with a recipe, in a file of their own.

    Returns:
        the name of the file.

    Raises:
        StoreError: it cannot be written.
    """
    ends = np.cumsum([0, *(len(response.input_ids) for response in responses)]).astype(np.int32)
    ids = np.concatenate([response.input_ids for response in responses]).astype(np.int32)
    numbers = np.array([response.number for response in responses], np.int32)
    columns = {
        "prompt": digests_column(Keys.of(response.prompt for response in responses)),
        "number": flat_column(numbers, pa.int32()),
        "response": list_column(ends, ids, RESPONSES.field("response").type),
    }
    data = write_table(columns, RESPONSES, {"cachekd": GENERATED, "recipe": recipe})
    digest = bytes_digest(data)
    name = generated_name(recipe, digest)
    location.keep(name, data, digest)
    return name


def load_responses(
    location: Location, recipe: str, *, vocab_size: int, max_new_tokens: int
) -> Responses:
    """What was written with a recipe so far.

    Raises:
        CorruptCache: a file is not the one that was written; names it.
    """
    tables = []
    for name in generated_files(location):
        if name.startswith(generated_name(recipe, "")[: -len(".parquet")]):
            tables.append(_read(location, name, vocab_size, max_new_tokens))
    return Responses(tables)


def generated_files(location: Location) -> dict[str, str]:
    """Files of responses, of any recipe, with the digest that each names, sorted."""
    there = location.names(GENERATED) if location.lists else []
    matches = (_NAME.fullmatch(name) for name in there)
    return {generated_name(match[1], match[2]): match[2] for match in matches if match}


def _read(location: Location, name: str, vocab_size: int, max_new_tokens: int) -> pa.Table:
    data = location.map(name)
    match = _NAME.fullmatch(name.rsplit("/", 1)[-1])
    assert match is not None, "it was found by this pattern"
    advice = f"delete {location.path(name)}: what it held is written anew"
    if bytes_digest(data) != match[2]:
        raise CorruptCache(f"{location.path(name)}: it was altered; {advice}")
    table = read_table(location.path(name), data, RESPONSES, limits.SAMPLES_ROWS)
    if not (table.num_rows and _possible(table, vocab_size, max_new_tokens)):
        raise CorruptCache(f"{location.path(name)}: it holds what no teacher writes; {advice}")
    return table


def _possible(table: pa.Table, vocab_size: int, max_new_tokens: int) -> bool:
    offsets, values = _lists(table)
    counts = np.diff(offsets)
    return bool(
        numpy_of(table["number"]).min() >= 0
        and counts.min() >= 1
        and counts.max() <= max_new_tokens
        and values.min() >= 0
        and values.max() < vocab_size
    )


def _lists(table: pa.Table) -> tuple[Int64, Int32]:
    """Offsets from 0 and flat token ids of the responses."""
    lists = table["response"].combine_chunks()
    offsets = numpy_of(lists.offsets).astype(np.int64)
    return offsets - offsets[0], numpy_of(lists.values)[offsets[0] : offsets[-1]]
