"""The packed codec on damaged and hostile records: refused, or the same values; never others."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ragged import DIGEST, assert_same, encoded, header, made_up, prior_of

from cachekd.codecs import CodecHeader
from cachekd.codecs._scalars import scalar_streams
from cachekd.codecs._streams import pack
from cachekd.codecs.packed import PackedCodec
from cachekd.errors import CorruptCache

UNUSED_BIT = 4 * 8 + 4  # of the frame header: zstd's decoders must ignore it

SMALL = [
    header(300, "float16"),
    header(300, "sqrt", prior=DIGEST),
    header(300, "log", tau=0.1, prior=DIGEST),
    header(300, "float32", samples=9),
]


def small(head: CodecHeader) -> tuple[PackedCodec, tuple[bytes, int, int]]:
    codec = PackedCodec(head, prior_of(300, 2, 40) if head.prior else None)
    record = made_up(head, [6, 0, 9], seed=3)
    return codec, encoded(codec, record)


@pytest.mark.parametrize("head", SMALL, ids=lambda head: head.values)
def test_no_flipped_bit_gives_other_values(head: CodecHeader) -> None:
    codec, (data, rows, count) = small(head)
    want = codec.decode([(data, rows, count)])[0]
    unnoticed = []
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = codec.decode([(bytes(damaged), rows, count)])[0]
        except CorruptCache:
            continue
        assert_same(found, want)
        unnoticed.append(bit)
    assert unnoticed in ([], [UNUSED_BIT])


@pytest.mark.parametrize("head", SMALL, ids=lambda head: head.values)
def test_no_part_of_a_frame_and_no_other_shape_is_taken(head: CodecHeader) -> None:
    codec, (data, rows, count) = small(head)
    pieces = [*(data[:end] for end in range(len(data))), data + b"\0", data + data, data[1:]]
    shapes = [(rows - 1, count), (rows + 1, count), (rows, count - 1), (rows, count + 1), (0, 0)]
    wrong = [(piece, rows, count) for piece in pieces] + [(data, *shape) for shape in shapes]
    for record in wrong:
        with pytest.raises(CorruptCache):
            codec.decode([record])
        with pytest.raises(CorruptCache):  # nor in the company of a whole one
            codec.decode([(data, rows, count), record])


def altered(head: CodecHeader, stream: int, values: list[int]) -> tuple[PackedCodec, Any]:
    """A record of one row and two entries, one stream of which says something else."""
    codec = PackedCodec(head, prior_of(300, 2, 40) if head.prior else None)
    contexts = [np.array([0])] if head.prior else []
    deltas = np.array([0, 2]) + (2 if head.tau else 0)
    runs = [np.array([2]), *contexts, deltas, np.array([0, 0]), np.array([1, 2])]
    scalars = [np.array([5])] * scalar_streams(head)
    streams = [*runs, np.zeros(0, np.int64), *scalars]
    assert codec.decode([(pack(streams), 1, 2)])[0].offsets.tolist() == [0, 2]
    streams[stream] = np.array(values, np.int64)
    return codec, (pack(streams), 1, 2)


PRIOR = header(300, "sqrt", prior=DIGEST)
TAMPERED = [
    (PRIOR, 0, [3], r"ends before|runs"),
    (PRIOR, 0, [1], "a record"),
    (PRIOR, 1, [2], "context"),
    (PRIOR, 1, [70_000], "context"),
    (PRIOR, 2, [0, 2 * 24], "grid does not have"),
    (PRIOR, 2, [0, (1 << 32) - 2], "grid does not have"),
    (PRIOR, 3, [0, 1], "do not hold its entries"),
    (PRIOR, 4, [1, 40], "beyond its list"),
    (PRIOR, 4, [255, 2], "a record"),
    (PRIOR, 6, [255], "tail"),
    (PRIOR, 6, [254], "no mass"),
    (header(300, "float16"), 1, [0, 2 * 0x7C00], "grid does not have"),
    (header(300, "float32"), 1, [0, 2 * 0x7F80_0000], "grid does not have"),
    (header(300, "sqrt", tau=0.5), 1, [2, 2 + 2 * 24], "grid does not have"),
    (header(300, "sqrt", tau=0.5), 1, [0, 2], "before those of the head"),
    (header(300, "log"), 1, [0, 2 * 65_535], "grid does not have"),
    (header(300, "log", samples=4), 1, [0, 8], "never drawn"),
    (header(300, "log"), 3, [1, 298], "a gap"),
    (header(300, "log"), 3, [1, 0xFFFF_FFFF], "a gap"),
]


@pytest.mark.parametrize(("head", "stream", "values", "message"), TAMPERED)
def test_whole_frames_that_lie_are_refused(
    head: CodecHeader, stream: int, values: list[int], message: str
) -> None:
    codec, record = altered(head, stream, values)
    with pytest.raises(CorruptCache, match=message):
        codec.decode([record])


@pytest.mark.parametrize("escape", [45, 0xFFFF_FF00, 0xFFFF_FFFF, 0x7FFF_FFFF, 0x8000_0000])
def test_no_escape_goes_around(escape: int) -> None:
    """A wide gap must not come out below where it began, nor in the list of another context."""
    for head in (header(300, "sqrt"), replace(header(300, "sqrt"), prior=DIGEST)):
        codec = PackedCodec(head, prior_of(300, 2, 40) if head.prior else None)
        contexts = [np.array([1])] if head.prior else []
        streams = [
            np.array([1]), *contexts, np.array([0]), np.array([2]), np.array([3, 255, 3]),
            np.array([escape]), *[np.array([5])] * 4,
        ]  # fmt: skip
        with pytest.raises(CorruptCache, match=r"gap|rank"):
            codec.decode([(pack(streams), 1, 3)])


def test_a_bomb_is_refused_before_memory_is_taken() -> None:
    codec, data = PackedCodec(header(300)), pack([np.ones(1 << 27, np.uint8)])
    assert len(data) < 1 << 17
    for shape in ((3, 8), (1, 1 << 26)):
        tracemalloc.start()
        try:
            with pytest.raises(CorruptCache):
                codec.decode([(data, *shape)])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 1 << 20


def test_a_header_and_its_prior_belong_together() -> None:
    for head, prior in ((header(30, prior=DIGEST), None), (header(30), prior_of(30, 2, 4))):
        with pytest.raises(CorruptCache, match="expected the prior"):
            PackedCodec(head, prior)
    with pytest.raises(CorruptCache, match="another vocabulary"):
        PackedCodec(header(30, prior=DIGEST), prior_of(31, 2, 4))
    with pytest.raises(CorruptCache, match="24-bit"):
        PackedCodec(header((1 << 24) + 1))


@pytest.mark.parametrize(
    "changes",
    [
        {"step": None}, {"step": 0.0}, {"step": 1e-9}, {"step": 2}, {"step": float("nan")},
        {"samples": -1}, {"samples": 1 << 40}, {"tau": 1.5}, {"samples": 5, "tau": 0.5},
        {"values": "int8"}, {"values": "float16"}, {"vocab_size": 0}, {"vocab_size": float("inf")},
        {"temperatures": [2.0, 2.0]}, {"temperatures": [4.0, 2.0]}, {"temperatures": [1.0]},
        {"temperatures": [-1.0]}, {"temperatures": [float("inf")]}, {"codec": "os:path"},
    ],
)  # fmt: skip
def test_hostile_headers_are_refused(changes: dict[str, Any]) -> None:
    stated = json.loads(header(300).to_json())
    assert CodecHeader.from_json(json.dumps(stated)) == header(300)
    with pytest.raises(CorruptCache):
        CodecHeader.from_json(json.dumps({**stated, **changes}))
