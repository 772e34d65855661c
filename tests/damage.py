"""Damage done to files of a cache on purpose, and what a cache then holds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cachekd

NOT_TRUSTED = frozenset({"README.md", "manifest.json"})  # a card for people, and a hint


def put(path: Path, data: bytes) -> None:
    """Other bytes under this name: a new file, for the old one may still be mapped."""
    new = path.with_name("new")
    new.write_bytes(data)
    os.replace(new, path)


def flipped(data: bytes, place: int | None = None, bits: int = 1) -> bytes:
    """The same bytes but one: that in the middle, or at a place."""
    damaged = bytearray(data)
    damaged[len(data) // 2 if place is None else place] ^= bits
    return bytes(damaged)


def flip(path: Path) -> None:
    put(path, flipped(path.read_bytes()))


def truncate(path: Path) -> None:
    data = path.read_bytes()
    put(path, data[: len(data) // 2])


def zero(path: Path) -> None:
    put(path, bytes(path.stat().st_size))


def delete(path: Path) -> None:
    path.unlink()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "truncated": truncate,
    "zeroed": zero,
    "deleted": delete,
}


def names_of(cache: Path) -> list[str]:
    """All files of a cache, sorted."""
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())


def snapshot(cache: Path) -> dict[str, bytes]:
    """Bytes of each file."""
    return {name: (cache / name).read_bytes() for name in names_of(cache)}


def contents(cache: Path, *, partial: bool = False) -> list[bytes]:
    """Every record of a cache, each as bytes, attention included."""
    found = []
    for record in cachekd.open_cache(str(cache), partial=partial):
        logits = record.logits
        arrays = [record.input_ids, record.roles, logits.offsets, logits.ids, logits.logprobs]
        arrays += [logits.tail, logits.next_logprob, logits.entropy, *logits.lognorm.values()]
        attention = record.attention
        if attention is not None:
            arrays += [attention.rows, attention.offsets, attention.keys, attention.probs]
            arrays.append(attention.rest)
        about = f"{record.prompt_length} {record.domain} {record.weight}".encode()
        parts = [record.key, record.sample_id, about, *(array.tobytes() for array in arrays)]
        found.append(b"|".join(parts))
    return found
