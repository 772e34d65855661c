"""Records and priors of the cache format: slow, obvious, and without cachekd or numpy.

Comes in: bytes. Goes out: plain Python values, ragged ones as a list of lists. Written from the
description of the format; where it and cachekd differ, one of them is wrong.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import zstandard


class FormatError(Exception):
    """A file is not what the format says."""


def check(good: bool, what: str) -> None:
    if not good:
        raise FormatError(what)


def unpack_frame(frame: bytes, least: int, most: int) -> bytes:
    """The content of a zstd frame, whose stated size must be in this range."""
    size = zstandard.frame_content_size(frame)
    check(least <= size <= most, "frame: content size")
    return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)


def decode(
    frame: bytes,
    header: dict[str, Any],
    rows: int,
    entries: int,
    prior: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Targets of one document; `prior` is the one that the header names."""
    check(entries <= rows * header["vocab_size"], "targets: entries")
    check((prior is None) == (header["prior"] is None), "targets: prior")
    if header["codec"] == "plain":
        return decode_plain(frame, header, rows, entries)
    check(header["codec"] == "packed", "codec")
    return decode_packed(frame, header, rows, entries, prior)


def decode_plain(frame: bytes, header: dict[str, Any], rows: int, entries: int) -> dict[str, Any]:
    temperatures = header["temperatures"]
    letter, width = {"float16": ("e", 2), "float32": ("f", 4)}[header["values"]]
    size = 4 * rows * (4 + len(temperatures)) + (3 + width) * entries
    raw = unpack_frame(frame, size, size)
    place = 0

    def plane(code: str, count: int) -> list[Any]:
        nonlocal place
        layout = struct.Struct(f"<{count}{code}")
        values = list(layout.unpack_from(raw, place))
        place += layout.size
        return values

    counts = plane("I", rows)
    check(sum(counts) == entries, "targets: counts")
    low, middle, high = plane("B", entries), plane("B", entries), plane("B", entries)
    ids = [a + 256 * b + 65536 * c for a, b, c in zip(low, middle, high, strict=True)]
    check(all(token < header["vocab_size"] for token in ids), "targets: token id")
    logprobs = numbers(plane(letter, entries))
    starts = [sum(counts[:t]) for t in range(rows + 1)]
    return {
        "ids": [ids[starts[t] : starts[t + 1]] for t in range(rows)],
        "logprobs": [logprobs[starts[t] : starts[t + 1]] for t in range(rows)],
        "weights": None,
        "tail": numbers(plane("f", rows)),
        "next_logprob": numbers(plane("f", rows)),
        "entropy": numbers(plane("f", rows)),
        "lognorm": {1.0: [0.0] * rows} | {t: numbers(plane("f", rows)) for t in temperatures},
    }


def numbers(values: list[float]) -> list[float]:
    check(all(value < math.inf for value in values), "targets: NaN or infinite")  # NaN is not less
    return values


class Streams:
    """The streams of a packed record, one after another."""

    def __init__(self, raw: bytes, count: int) -> None:
        self.raw, self.planes, self.place = raw, list(raw[:count]), count
        check(all(planes <= 4 for planes in self.planes), "targets: planes")

    def take(self, count: int) -> list[int]:
        values = [0] * count
        for i in range(self.planes.pop(0)):
            plane = self.raw[self.place : self.place + count]
            check(len(plane) == count, "targets: stream")
            values = [value + (byte << 8 * i) for value, byte in zip(values, plane, strict=True)]
            self.place += count
        return values


def decode_packed(
    frame: bytes, header: dict[str, Any], rows: int, entries: int, prior: dict[str, Any] | None
) -> dict[str, Any]:
    vocab, lists = header["vocab_size"], prior["lists"] if prior else []
    everything = prior["by_unigram"] if prior else range(vocab)
    scalars = 3 + len(header["temperatures"])
    count = 5 + bool(lists) + scalars
    raw = unpack_frame(frame, count, count + 4 * ((2 + scalars) * rows + 4 * entries))
    streams = Streams(raw, count)
    runs_of_row = streams.take(rows)
    contexts = streams.take(rows) if lists else [0] * rows
    check(max(contexts, default=0) < max(1, len(lists)), "targets: context")
    runs = sum(runs_of_row)
    check(runs <= entries, "targets: runs")
    deltas, lengths, gaps = streams.take(runs), streams.take(runs), streams.take(entries)
    check(sum(lengths) + runs == entries, "targets: entries of runs")
    check(max(gaps, default=0) <= 255, "targets: gap")
    escapes = iter(streams.take(gaps.count(255)))
    codes_of_scalars = [streams.take(rows) for _ in range(scalars)]
    check(streams.place == len(raw), "targets: bytes left")
    steps, sizes, jumps = iter(deltas), iter(lengths), iter(gaps)
    targets = scalars_of(codes_of_scalars, header)
    targets |= {"ids": [], "logprobs": [], "weights": []}
    for t in range(rows):
        code, ids, codes = 0, [], []
        for _ in range(runs_of_row[t]):
            delta = next(steps)
            sampled = header["tau"] and delta < 2
            code += 0 if sampled else (delta - 2) // 2 if header["tau"] else delta // 2
            inside = lists and delta % 2 == 0
            tokens, rank = lists[contexts[t]] if inside else everything, -1
            for _ in range(next(sizes) + 1):
                gap = next(jumps)
                rank += 1 + gap + (next(escapes) if gap == 255 else 0)
                check(rank < len(tokens), "targets: rank")
                ids.append(tokens[rank])
                codes.append(None if sampled else code)
        logprobs, weights = values_of(codes, targets["tail"][t], header)
        targets["ids"].append(ids)
        targets["logprobs"].append(logprobs)
        targets["weights"].append(weights)
    if not header["samples"] and not header["tau"]:
        targets["weights"] = None
    return targets


def values_of(
    codes: list[int | None], tail: float, header: dict[str, Any]
) -> tuple[list[float], list[float]]:
    """Log-probabilities and weights of a row's entries; the code of a sampled one is None."""
    values, step, tau = header["values"], header["step"], header["tau"]
    if header["samples"]:
        check(all(code < header["samples"] for code in codes), "targets: never drawn")
        weights = [(header["samples"] - code) / header["samples"] for code in codes]
        return [math.log(weight) for weight in weights], weights
    top = round(1 / step) if values == "sqrt" else 65535
    sampled = {"float16": 0x7C00, "float32": 0x7F800000}.get(values, top)
    head = [code for code in codes if code is not None]
    check(codes[: len(head)] == head, "targets: sampled entries before the head")
    check(all(code < sampled for code in head), "targets: value")
    if values == "float16":
        logs = [0.0 - struct.unpack("<e", struct.pack("<H", code))[0] for code in head]
    elif values == "float32":
        logs = [0.0 - struct.unpack("<f", struct.pack("<I", code))[0] for code in head]
    else:
        logs = [math.log(mean_of_level(top - c)) if values == "sqrt" else -c * step for c in head]
        check(not head or tail < 0, "targets: no mass for the head")
        mass = math.fsum(math.exp(x - logs[0]) for x in logs)
        logs = [min(0.0, x - logs[0] - math.log(mass) + math.log(-math.expm1(tail))) for x in logs]
    sampled_entries = len(codes) - len(head)
    weights = [0.0] * len(head) + [tau] * sampled_entries
    return logs + [math.log(tau) for _ in range(sampled_entries)], weights


def mean_of_level(level: int) -> float:
    """In steps squared."""
    a, b = level - 0.5, level + 0.5
    return 2 * math.log(b / a) / (a**-2 - b**-2)


def scalars_of(streams: list[list[int]], header: dict[str, Any]) -> dict[str, Any]:
    drawn = header["samples"] or header["tau"]
    if header["values"] in ("float16", "float32") and not drawn:
        exact = [
            numbers([struct.unpack("<f", struct.pack("<I", v))[0] for v in s]) for s in streams
        ]
        tail, following, entropy, *lognorm = exact
    else:
        check(max(streams[0], default=0) <= 254, "targets: tail")
        tail = [tail_of(code) for code in streams[0]]
        following = [0.0 - code / 64 for code in streams[1]]
        entropy = [code / 64 for code in streams[2]]
        lognorm = [[(-(c + 1) // 2 if c % 2 else c // 2) / 256 for c in s] for s in streams[3:]]
    rows = len(tail)
    norms = dict(zip(header["temperatures"], lognorm, strict=True))
    return {
        "tail": tail,
        "next_logprob": following,
        "entropy": entropy,
        "lognorm": {1.0: [0.0] * rows} | norms,
    }


def tail_of(code: int) -> float:
    if code in (0, 254):
        return 0.0 if code else -math.inf
    odds = -13.8 + (code - 1) * 19.8 / 252
    return -math.log1p(math.exp(-odds))


def parse_prior(data: bytes) -> dict[str, Any]:
    """Lists of token ids of each context, all tokens by falling unigram, and the unigram."""
    magic, version, vocab, contexts, width = struct.unpack_from("<8sIIII", data)
    check(magic == b"CKDPRIOR" and version == 1, "prior: head")
    check(contexts <= 4096 and width <= vocab and contexts * width <= 1 << 24, "prior: lists")
    check(1 <= vocab <= 1 << 24 and (contexts == 0) == (width == 0), "prior: sizes")
    listed = contexts * width
    raw = unpack_frame(data[24:], 2 * vocab + 3 * listed, 2 * vocab + 3 * listed)
    logs = struct.unpack_from(f"<{vocab}e", raw)
    low, middle, high = (raw[2 * vocab + i * listed :][:listed] for i in range(3))
    ids = [a + 256 * b + 65536 * c for a, b, c in zip(low, middle, high, strict=True)]
    lists = [ids[i * width : (i + 1) * width] for i in range(contexts)]
    check(all(len(set(tokens)) == width for tokens in lists), "prior: repeated token")
    check(all(token < vocab for token in ids), "prior: token id")
    by_unigram = sorted(range(vocab), key=lambda token: (-logs[token], token))
    return {"lists": lists, "by_unigram": by_unigram, "log_unigram": list(logs)}


def distribution(
    logprobs: list[float], tail: float, temperature: float = 1.0, lognorm: float = 0.0
) -> tuple[list[float], float]:
    """The decode law: probabilities of a row's head, and of all else together, at a temperature."""
    mass = math.fsum(math.exp(value) for value in logprobs)
    head = [math.exp(value) / mass * (1.0 - math.exp(tail)) for value in logprobs]
    if temperature == 1.0:
        return head, math.exp(tail)
    head = [p ** (1 / temperature) / math.exp(lognorm) for p in head]
    mass = math.fsum(head)
    if tail == -math.inf or mass >= 1:
        return [p / mass for p in head], 0.0
    return head, 1.0 - mass
