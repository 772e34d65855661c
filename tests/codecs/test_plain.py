"""The plain codec: what goes in comes out, rounded to the stored dtype; damage never does."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cachekd.codecs import CodecHeader
from cachekd.codecs.plain import PlainCodec
from cachekd.errors import CorruptCache
from cachekd.types import TopKLogits

UNUSED_BIT = 4 * 8 + 4  # of the frame header: zstd's decoders must ignore it


def header(vocab: int, dtype: str = "float16", temperatures: tuple[float, ...] = ()) -> CodecHeader:
    return CodecHeader(codec="plain", vocab_size=vocab, values=dtype, temperatures=temperatures)


def made_up(
    vocab: int, counts: list[int], temperatures: tuple[float, ...], seed: int
) -> TopKLogits:
    """Targets with these numbers of entries; ids reach the top of the vocabulary."""
    rng = np.random.default_rng(seed)
    rows, n = len(counts), sum(counts)
    ids = [vocab - 1 - rng.permutation(min(vocab, 4 * k))[:k] for k in counts]

    def scalars() -> np.ndarray:
        return (-rng.exponential(3.0, rows)).astype(np.float32)

    tail = scalars()
    tail[np.array(counts) == vocab] = -np.inf
    return TopKLogits(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        ids=np.concatenate([np.zeros(0), *ids]).astype(np.int32),
        logprobs=(-rng.exponential(4.0, n)).astype(np.float32),
        weights=None,
        tail=tail,
        next_logprob=scalars(),
        lognorm={1.0: np.zeros(rows, np.float32), **{t: scalars() for t in temperatures}},
        entropy=-scalars(),
        vocab_size=vocab,
    )


def assert_equal(left: TopKLogits, right: TopKLogits, dtype: str) -> None:
    """Equal bits, log-probs after rounding; and the dtypes that `TopKLogits` states."""
    assert np.array_equal(left.offsets, right.offsets) and left.offsets.dtype == np.int64
    assert np.array_equal(left.ids, right.ids) and left.ids.dtype == np.int32
    rounded = right.logprobs.astype(dtype).astype(np.float32)
    assert left.logprobs.tobytes() == rounded.tobytes() and left.logprobs.dtype == np.float32
    for name in ("tail", "next_logprob", "entropy"):
        assert getattr(left, name).tobytes() == getattr(right, name).tobytes()
    assert left.lognorm.keys() == right.lognorm.keys()
    assert all(left.lognorm[t].tobytes() == right.lognorm[t].tobytes() for t in left.lognorm)
    assert left.weights is None and left.vocab_size == right.vocab_size


@st.composite
def cases(draw: st.DrawFn) -> tuple[TopKLogits, CodecHeader]:
    vocab = draw(st.sampled_from([2, 3, 255, 256, 257, 320, 65_537, 262_144, 300_000, 1 << 24]))
    count = st.one_of(st.integers(0, min(vocab, 70)), st.just(min(vocab, 300)), st.just(0))
    counts = draw(st.lists(count, min_size=1, max_size=9))
    temperatures = tuple(draw(st.sampled_from([(), (2.0,), (0.5, 2.0), (0.7, 1.5, 4.0)])))
    dtype = draw(st.sampled_from(["float16", "float32"]))
    targets = made_up(vocab, counts, temperatures, draw(st.integers(0, 1 << 30)))
    return targets, header(vocab, dtype, temperatures)


@settings(max_examples=300, deadline=None)
@given(cases())
@example((made_up(2, [0], (), 1), header(2)))
@example((made_up(7, [7, 0, 7], (2.0,), 2), header(7, "float32", (2.0,))))
@example((made_up(262_144, [262_144], (2.0,), 3), header(262_144, "float16", (2.0,))))
def test_what_goes_in_comes_out(case: tuple[TopKLogits, CodecHeader]) -> None:
    targets, head = case
    codec = PlainCodec(head)
    data = codec.encode(targets)
    assert data == codec.encode(targets), "bytes are a function of the values"
    assert_equal(codec.decode([(data, targets.rows, len(targets.ids))])[0], targets, head.values)


def test_log_probabilities_stay_finite() -> None:
    targets = replace(made_up(9, [2], (), 1), logprobs=np.float32([0.0, -3e38]))
    for dtype, lowest in (("float16", -65504.0), ("float32", np.float32(-3e38))):
        codec = PlainCodec(header(9, dtype))
        assert codec.decode([(codec.encode(targets), 1, 2)])[0].logprobs.tolist() == [0.0, lowest]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_no_flipped_bit_gives_other_values(dtype: str) -> None:
    targets = made_up(300, [3, 0, 5], (2.0,), 4)
    codec = PlainCodec(header(300, dtype, (2.0,)))
    data = codec.encode(targets)
    unnoticed = []
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = codec.decode([(bytes(damaged), 3, 8)])[0]
        except CorruptCache:
            continue
        assert_equal(found, targets, dtype)
        unnoticed.append(bit)
    assert unnoticed in ([], [UNUSED_BIT])


def test_no_part_of_a_frame_is_taken() -> None:
    targets = made_up(300, [3, 0, 5], (2.0,), 4)
    codec = PlainCodec(header(300, "float16", (2.0,)))
    data = codec.encode(targets)
    for piece in (*(data[:end] for end in range(len(data))), data + b"\0", data + data, data[1:]):
        with pytest.raises(CorruptCache):
            codec.decode([(piece, 3, 8)])[0]


@pytest.mark.parametrize(("rows", "entries"), [(2, 8), (4, 8), (3, 7), (3, 9), (0, 0)])
def test_a_frame_of_another_shape_is_refused(rows: int, entries: int) -> None:
    codec = PlainCodec(header(300))
    data = codec.encode(made_up(300, [3, 0, 5], (), 4))
    with pytest.raises(CorruptCache, match="claims 88 bytes; its shape allows"):
        codec.decode([(data, rows, entries)])[0]


def test_counts_must_add_up_to_the_entries() -> None:
    """The same size, but the rows claim more entries than there are."""
    targets = made_up(300, [3, 0, 5], (), 4)
    codec = PlainCodec(header(300))
    raw = bytearray(zstandard.decompress(codec.encode(targets)))
    raw[0:4] = struct.pack("<I", 4)
    with pytest.raises(CorruptCache, match="counts or token ids"):
        codec.decode([(zstandard.ZstdCompressor(write_checksum=True).compress(bytes(raw)), 3, 8)])[
            0
        ]


def bomb(size: int) -> bytes:
    """A frame of a few KB that claims, and has, ``size`` zero bytes: run-length blocks."""
    block, left, parts = 128 * 1024, size, [b"\x28\xb5\x2f\xfd\xa0", struct.pack("<I", size)]
    while left:
        width = min(block, left)
        left -= width
        parts.append(struct.pack("<I", (width << 3) | 2 | (left == 0))[:3] + b"\0")
    return b"".join(parts)


def test_the_bomb_is_a_frame() -> None:
    assert zstandard.decompress(bomb(300_000)) == bytes(300_000)


@pytest.mark.parametrize("claimed", [8, ((1 << 30) - 16) // 5])
def test_a_bomb_is_refused_before_memory_is_taken(claimed: int) -> None:
    """Also one whose record claims entries to match: more than its rows and vocabulary allow."""
    data, codec = bomb(1 << 30), PlainCodec(header(300))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCache):
            codec.decode([(data, 1 if claimed > 8 else 3, claimed)])[0]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_a_frame_without_content_size_is_refused() -> None:
    codec = PlainCodec(header(300))
    raw = zstandard.decompress(codec.encode(made_up(300, [3, 0, 5], (), 4)))
    blind = zstandard.ZstdCompressor(write_content_size=False).compress(raw)
    with pytest.raises(CorruptCache, match="claims -1 bytes"):
        codec.decode([(blind, 3, 8)])[0]


def test_ids_of_another_vocabulary_are_refused() -> None:
    targets = made_up(300, [3, 1], (), 4)
    data = PlainCodec(header(300)).encode(replace(targets, ids=np.int32([7, 299, 0, 1])))
    assert PlainCodec(header(300)).decode([(data, 2, 4)])[0].ids.tolist() == [7, 299, 0, 1]
    with pytest.raises(CorruptCache, match="token ids"):
        PlainCodec(header(299)).decode([(data, 2, 4)])[0]
    with pytest.raises(CorruptCache, match="24-bit"):
        PlainCodec(header((1 << 24) + 1))


def test_the_header_comes_back_and_is_checked() -> None:
    head = header(320, "float32", (0.5, 2.0))
    assert CodecHeader.from_json(head.to_json()) == head
    for text in (
        b"",
        b"[]",
        "{}",
        head.to_json().replace("float32", "int8"),
        head.to_json().replace("320", "0"),
        head.to_json().replace("[0.5, 2.0]", "7"),
    ):
        with pytest.raises(CorruptCache, match="codec header"):
            CodecHeader.from_json(text)
