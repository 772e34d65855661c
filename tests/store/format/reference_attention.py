"""A second reader of attention shards: slow, obvious, and without cachekd or numpy.

Comes in: the bytes of a shard. Goes out: for each document its query rows, and for each layer, head
and row a dictionary of keys to probabilities, and the rest. Frames are opened with zstandard.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import Any

import zstandard

Row = tuple[dict[int, float], float]


def tensors(data: bytes) -> tuple[dict[str, bytes], dict[str, str]]:
    """The arrays of a safetensors file as bytes, and its metadata."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    body = data[8 + length :]
    return {name: body[slice(*entry["data_offsets"])] for name, entry in header.items()}, metadata


def read_shard(data: bytes) -> dict[bytes, tuple[list[int], list[list[list[Row]]]]]:
    """By key: query rows, and [layer][head][row] of keys and probabilities, with the rest."""
    arrays, metadata = tensors(data)
    spec = json.loads(metadata["attention"])
    documents = len(arrays["keys"]) // 16
    lengths = struct.unpack(f"<{documents}i", arrays["n_tokens"])
    per_document = len(spec["layers"]) + 1
    offsets = struct.unpack(f"<{documents * per_document + 1}q", arrays["offsets"])
    found = {}
    for i in range(documents):
        blocks = []
        for number in range(i * per_document, (i + 1) * per_document):
            block = arrays["blocks"][offsets[number] : offsets[number + 1]]
            checksum = hashlib.blake2b(block, digest_size=8).digest()
            assert checksum == arrays["checksums"][8 * number : 8 * number + 8]
            blocks.append(block)
        length = lengths[i] - 1
        rows = [t for t in range(length) if not blocks[0] or blocks[0][t // 8] >> t % 8 & 1]
        decode = read_qk if spec["kind"] == "qk" else read_maps
        layers = [
            decode(spec, zstandard.ZstdDecompressor().decompress(block), rows, length)
            if rows
            else [[] for _ in spec["heads"]]
            for block in blocks[1:]
        ]
        found[arrays["keys"][16 * i : 16 * i + 16]] = (rows, layers)
    return found


def read_maps(spec: dict[str, Any], raw: bytes, rows: list[int], length: int) -> list[list[Row]]:
    heads = len(spec["heads"])
    counts = [min(t + 1, spec["keys"] or t + 1) for t in rows] * heads
    n = sum(counts)
    rests, levels = raw[: len(counts)], raw[len(raw) - n :]
    gaps = raw[len(counts) : len(raw) - n]
    place, flat = 0, []
    for i, count in enumerate(counts):
        key, kept = 0, {}
        for j in range(place, place + count):
            if spec["keys"]:
                key += gaps[j] + 256 * gaps[n + j]
            else:
                key = j - place
            if levels[j]:
                kept[key] = probability(spec, levels[j])
        place += count
        rest = (rests[i] / 255) ** 2 if kept else 1.0
        total = sum(kept.values())
        flat.append(({key: p * (1 - rest) / total for key, p in kept.items()}, rest))
    return [flat[h * len(rows) : (h + 1) * len(rows)] for h in range(heads)]


def probability(spec: dict[str, Any], level: int) -> float:
    if spec["values"] == "sqrt":
        return float((level * spec["step"]) ** 2)
    return math.exp(-(level - 1) * spec["step"])


def read_qk(spec: dict[str, Any], raw: bytes, rows: list[int], length: int) -> list[list[Row]]:
    width, heads = spec["head_width"], len(spec["heads"])
    groups = [head * spec["key_heads"] // spec["teacher_heads"] for head in spec["heads"]]
    stored = sorted(set(groups))
    bases = struct.unpack(
        f"<{(heads + len(stored)) * width}h", raw[: 2 * (heads + len(stored)) * width]
    )
    rest = raw[2 * len(bases) :]
    half, place, vectors = len(rest) // 2, 0, []
    for side in range(heads + len(stored)):
        count = len(rows) if side < heads else length
        dimensions = []
        for d in range(width):
            values = []
            for j in range(place, place + count):
                zigzag = rest[j] + 256 * rest[half + j]
                values.append(bases[side * width + d] + (zigzag >> 1 ^ -(zigzag & 1)))
            dimensions.append(values)
            place += count
        vectors.append(list(zip(*dimensions, strict=True)))
    return [
        [
            softmax(spec, vectors[h][r], vectors[heads + stored.index(groups[h])][: t + 1])
            for r, t in enumerate(rows)
        ]
        for h in range(heads)
    ]


def softmax(spec: dict[str, Any], query: tuple[int, ...], keys: list[tuple[int, ...]]) -> Row:
    scores = [
        sum(a * b for a, b in zip(query, key, strict=True)) * spec["step"] ** 2 for key in keys
    ]
    weights = [math.exp(score - max(scores)) for score in scores]
    return {key: weight / sum(weights) for key, weight in enumerate(weights)}, 0.0
