"""Streams: any unsigned numbers come back; a frame that lies about its streams is refused."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cachekd.codecs._streams import Frame, pack
from cachekd.errors import CorruptCache

number = st.one_of(st.integers(0, 300), st.sampled_from([65_535, 65_536, 1 << 24, 2**32 - 1]))


@given(st.lists(st.lists(number, max_size=50), min_size=1, max_size=8), st.booleans())
def test_streams_come_back(streams: list[list[int]], narrow: bool) -> None:
    arrays = [np.array(stream, np.int64) for stream in streams]
    arrays = [a.astype(np.uint8) if narrow and a.max(initial=0) < 256 else a for a in arrays]
    data = pack(arrays)
    assert data == pack(arrays)
    frame = Frame(data, len(streams), 1 << 20)
    assert [frame.take(len(stream)).tolist() for stream in streams] == streams
    frame.finish()
    raw = zstandard.decompress(data)
    planes = [(max(stream, default=0).bit_length() + 7) // 8 for stream in streams]
    assert list(raw[: len(streams)]) == planes
    low = bytes(value & 255 for value in streams[0]) if planes[0] else b""
    assert raw[len(streams) :].startswith(low)


def test_a_wrong_count_is_refused() -> None:
    data = pack([np.arange(5), np.arange(300)])
    for streams, counts in ((2, (5, 299)), (2, (5, 301)), (2, (4, 300)), (3, (5, 300, 0))):
        with pytest.raises(CorruptCache):
            frame = Frame(data, streams, 1 << 10)
            for count in counts:
                frame.take(count)
            frame.finish()


def test_sizes_planes_and_frames_are_checked() -> None:
    for raw, message in (
        (b"\5" + bytes(10), "planes"),
        (b"", "claims 0"),
        (bytes(99), "allows 1 to 50"),
    ):
        with pytest.raises(CorruptCache, match=message):
            Frame(zstandard.ZstdCompressor(write_checksum=True).compress(raw), 1, 50)
    with pytest.raises(CorruptCache, match="decompressed"):
        Frame(b"no frame", 1, 50)
    frame = Frame(pack([np.arange(4)]), 1, 50)
    with pytest.raises(CorruptCache, match="more bytes"):
        frame.finish()
