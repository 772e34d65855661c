"""Picked rows from the device to the host, while the device goes on with the next chunk."""

from __future__ import annotations

from dataclasses import fields

import torch

from cachekd.teachers import Selection
from cachekd.teachers._assembly import Tile, tile_of
from cachekd.teachers._selection import Picked


class Downloads:
    """Collects picked tiles as host arrays.

    On a GPU a tile is copied into pinned memory on a stream of its own, which waits for the
    kernels that make the tile and for nothing else; the host waits once, at the end.
    """

    def __init__(self, device: torch.device, selection: Selection) -> None:
        self._selection = selection
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._tiles: list[Tile] = []
        self._under_way: list[Picked] = []

    def add(self, picked: Picked) -> None:
        """Take a tile over."""
        if self._stream is None:
            self._tiles.append(tile_of(picked, self._selection))
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            copies = {}
            for name in (item.name for item in fields(Picked)):
                tensor = getattr(picked, name)
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                copies[name] = copy.copy_(tensor, non_blocking=True)
                tensor.record_stream(self._stream)  # its memory is not reused before the copy
        self._under_way.append(Picked(**copies))

    def finish(self) -> list[Tile]:
        """All tiles in the order they came."""
        if self._stream is not None:
            self._stream.synchronize()
            self._tiles += [tile_of(picked, self._selection) for picked in self._under_way]
            self._under_way = []
        return self._tiles
