"""One zstd frame to bytes, whose size is known before anything is allocated for it."""

from __future__ import annotations

import zstandard

from cachekd.data import limits

_BLOCK = 1 << 17  # a block unpacks to no more,
_BLOCK_BYTES = 4  # and takes no less


def unpack_frame(data: bytes, least: int, most: int) -> bytes:
    """The content of a frame.

    Args:
        data: the frame, and nothing else.
        least: bytes that its content has at least, from the shape of what it holds.
        most: the same, at most.

    Raises:
        ValueError: it states no size or another, is too small to hold so much, has no checksum, or
            is damaged.
    """
    try:
        size = zstandard.frame_content_size(data)
        head = zstandard.get_frame_parameters(data)
        if not least <= size <= most:
            allowed = str(most) if least == most else f"{least} to {most}"
            raise ValueError(f"it claims {size} bytes; its shape allows {allowed}")
        if size > min(limits.FRAME_BYTES, _BLOCK * (len(data) // _BLOCK_BYTES)):
            raise ValueError(f"{len(data)} bytes cannot hold the {size} that it claims")
        if head.window_size > max(size, limits.FRAME_WINDOW) or not head.has_checksum:
            raise ValueError(f"it has no checksum, or a window of {head.window_size} bytes")
        return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"it cannot be decompressed: {error}") from error
