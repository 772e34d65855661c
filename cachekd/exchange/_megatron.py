"""Tars of Megatron-LM's saved teacher log-probabilities: members, payloads, order of samples.

    version 1   [cp0_]dp<rank>__<last iteration>.tar
                    _meta.json          saver: k, ...
                    <iteration>.pt.zst  torch.save of values, indices_low uint16, bit_17 bool, each
                                        a list of micro-batches [tokens, samples, k]
    version 2   dp<rank>__<first sample>-<end>.tar, or named by iterations as version 1
                    _meta.json          also mbs_save, dp_size_save, gbs_save
                    <first>-<end>.pt.zst  one tensor [tokens, samples, k] each; bit_17 may be
                                        packed, eight entries a byte, the first in the highest bit

Comes in: files. Goes out: for each iteration its samples in the order of training. Members are read
from the archive as a stream, and nothing is ever written to a disk: links, folders and names that
are none of these are refused.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard

from cachekd.data import limits, strict
from cachekd.errors import DataError
from cachekd.exchange._sources import File
from cachekd.exchange._torch_file import load
from cachekd.types import Int64

META = "_meta.json"
_TAR = re.compile(r"(?:cp(?P<cp>\d+)_)?dp(?P<dp>\d+)__(?P<number>\d+)(?:-\d+)?\.tar")
_MEMBER = re.compile(r"(?P<number>\d{1,12})(?:-(?P<end>\d{1,12}))?\.pt\.zst")
_VERSIONS = (1, 2)
_META_BYTES = 1 << 20
_RATIO, _SLACK = 256, 1 << 20  # what a frame unpacks to: fillers of top-p are packed well


@dataclass(frozen=True, slots=True, eq=False)
class Payload:
    """Samples of one iteration of one data-parallel rank.

    Attributes:
        source: name of the tar.
        number: number of the iteration, or of its first sample where ``end`` is told.
        end: number after the iteration's last sample, of all ranks together, or None.
        ids, logprobs: int64 and float32 [tokens, samples, k], or a part per micro-batch.
    """

    source: str
    number: int
    end: int | None
    ids: Sequence[np.ndarray]
    logprobs: Sequence[np.ndarray]

    @property
    def samples(self) -> int:
        """Samples of the rank in this iteration."""
        return sum(part.shape[1] for part in self.ids)

    def sample(self, number: int) -> tuple[Int64, np.ndarray]:
        """Ids and log-probabilities [tokens, k] of a sample."""
        for ids, logs in zip(self.ids, self.logprobs, strict=True):
            if number < ids.shape[1]:
                return ids[:, number], logs[:, number]
            number -= ids.shape[1]
        raise IndexError(number)


def ranks_of(files: Sequence[File]) -> dict[int, list[File]]:
    """Tars by data-parallel rank, in order of their iterations or samples.

    Raises:
        DataError: names of another kind, or of sequences that were cut into parts (context
            parallelism), or ranks are missing.
    """
    found: dict[int, list[tuple[int, File]]] = {}
    for file in files:
        match = _TAR.fullmatch(file.name)
        if match is None:
            raise DataError(
                f"{file.name}: expected tars named dp<rank>__<iteration>.tar or "
                "dp<rank>__<first sample>-<end>.tar, as versions 1 and 2 of Megatron-LM's "
                "--logits-save-dir hold"
            )
        if int(match["cp"] or 0):
            raise DataError(
                f"{file.name}: it holds a part of each sequence (context-parallel rank "
                f"{match['cp']}), which Megatron-LM itself no longer reads; save with one rank"
            )
        found.setdefault(int(match["dp"]), []).append((int(match["number"]), file))
    if sorted(found) != list(range(len(found))):
        raise DataError(f"tars of the data-parallel ranks {sorted(found)}; some are missing")
    return {rank: [file for _, file in sorted(own, key=_first)] for rank, own in found.items()}


def _first(pair: tuple[int, File]) -> int:
    return pair[0]


def payloads(files: Sequence[File], told: dict[str, Any]) -> Iterator[Payload]:
    """Iterations of a rank, in order.

    Args:
        files: tars of the rank.
        told: takes what the first ``_meta.json`` says.

    Raises:
        DataError: a tar is truncated, or holds what it should not; names it and the member.
    """
    last = -1
    for file in files:
        for name, data in members(file):
            if name == META:
                told.setdefault("meta", _meta(file, data))
                continue
            payload = _payload(file, name, data)
            if payload.number <= last:
                raise DataError(f"{file.name}: member {name} comes twice")
            last = payload.number
            yield payload


def members(file: File) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of the members of a tar.

    Raises:
        DataError: it is truncated, or a member is no plain file of a known name.
    """
    try:
        with file.open() as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            count = 0
            for member in tar:
                known = member.name == META or _MEMBER.fullmatch(member.name)
                if not member.isreg() or member.issparse() or not known:
                    kind = "a plain file" if member.isreg() else "no plain file"
                    raise DataError(
                        f"{file.name}: member {member.name!r:.100} ({kind}) is none that "
                        f"Megatron-LM writes: {META} and <number>.pt.zst. Nothing was unpacked"
                    )
                most = _META_BYTES if member.name == META else limits.FRAME_BYTES
                if member.size > most:
                    raise DataError(f"{file.name}: member {member.name} of {member.size} bytes")
                content = tar.extractfile(member)
                assert content is not None, "a plain file has content"
                data = content.read()
                if len(data) != member.size:
                    raise DataError(f"{file.name}: member {member.name} is cut off")
                count += 1
                yield member.name, data
            if not count:
                raise DataError(f"{file.name}: the archive is empty")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{file.name}: the archive cannot be read ({error}); it was truncated or is none"
        ) from error


def _meta(file: File, data: bytes) -> Mapping[str, Any]:
    try:
        found = strict.fields(strict.parse_json(data, most_bytes=_META_BYTES))
        strict.fields(found.get("saver", {}))
        return found
    except ValueError as error:
        raise DataError(f"{file.name}: {META} cannot be read: {error}") from error


def _payload(file: File, name: str, data: bytes) -> Payload:
    match = _MEMBER.fullmatch(name)
    assert match is not None, "members of other names are refused"
    try:
        content = load(_unpacked(data))
        if not isinstance(content, dict):
            raise ValueError(f"expected tensors by name; found {type(content).__name__}")
        _refuse_later(content)
        parts = [_listed(content[key]) for key in ("values", "indices_low", "bit_17")]
        checked = [_micro_batch(*part) for part in zip(*parts, strict=True)]
    except (ValueError, KeyError) as error:
        raise DataError(f"{file.name}: member {name} cannot be read: {error}") from error
    return Payload(
        source=file.name,
        number=int(match["number"]),
        end=int(match["end"]) if match["end"] else None,
        ids=[part[0] for part in checked],
        logprobs=[part[1] for part in checked],
    )


def _refuse_later(content: Mapping[str, Any]) -> None:
    """Refuse what is not understood: a later version, or samples of several documents."""
    version = content.get("format_version", 1)
    if version not in _VERSIONS:
        raise ValueError(f"expected format_version 1 or 2; found {version!r:.40}")
    borders = content.get("cu_seqlens_padded")
    if borders is not None and any(len({*row}) > 2 for row in np.atleast_2d(borders).tolist()):
        raise ValueError(
            "samples are packed of several documents, whose targets stand for no one text; save "
            "them unpacked"
        )


def _unpacked(data: bytes) -> bytes:
    """The content of a zstd frame whose size is looked at before anything is allocated."""
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= min(limits.FRAME_BYTES, _SLACK + _RATIO * len(data)):
            raise ValueError(
                f"a frame of {len(data)} bytes says that it unpacks to {size}, more than "
                f"{_RATIO} times as many"
            )
        return zstandard.ZstdDecompressor().decompress(data)
    except zstandard.ZstdError as error:
        raise ValueError(f"no zstd frame: {error}") from error


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _micro_batch(values: Any, low: Any, high: Any) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(high, np.ndarray) and isinstance(low, np.ndarray) and high.ndim == 1:
        high = _spread(high, low)
    arrays = (values, low, high)
    if not all(isinstance(one, np.ndarray) and one.ndim == 3 for one in arrays):
        raise ValueError("expected tensors [tokens, samples, k]")
    if not values.shape == low.shape == high.shape:
        raise ValueError(f"shapes {values.shape}, {low.shape} and {high.shape} do not agree")
    ids = low.astype(np.int64) | (high.astype(np.int64) << 16)
    return ids, values.astype(np.float32)


def _spread(packed: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Bits of all entries, packed eight a byte, as an array of the entries' shape."""
    if packed.dtype != np.uint8 or len(packed) != (low.size + 7) // 8:
        raise ValueError(
            f"bit_17 of shape {packed.shape} and {packed.dtype} for {low.size} entries; expected "
            "bytes of eight bits"
        )
    return np.unpackbits(packed, count=low.size).reshape(low.shape)


def order_of(payloads_D: Sequence[Payload], told: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Rank and number in it of each sample of an iteration, in the order of training.

    Micro-batches go round the ranks: of ``mbs`` samples each, to the first rank, the second, ...
    """
    saver = told.get("meta", {}).get("saver", {})
    first = payloads_D[0]
    if saver.get("dp_size_save", len(payloads_D)) != len(payloads_D):
        raise DataError(
            f"{first.source}: it was saved by {saver['dp_size_save']} data-parallel ranks; tars of "
            f"{len(payloads_D)} are there"
        )
    mbs = saver.get("mbs_save") or first.ids[0].shape[1]
    counts = {payload.samples for payload in payloads_D}
    if len(counts) != 1 or type(mbs) is not int or mbs < 1 or counts.pop() % mbs:
        raise DataError(
            f"{first.source}: member {first.number} has "
            f"{[payload.samples for payload in payloads_D]} samples by rank, in micro-batches of "
            f"{mbs}; they do not go round"
        )
    if first.end is not None and first.end - first.number != len(payloads_D) * first.samples:
        raise DataError(
            f"{first.source}: samples {first.number} to {first.end} are "
            f"{len(payloads_D) * first.samples} samples; tars of some ranks are missing"
        )
    rounds = first.samples // mbs
    return [
        (rank, batch * mbs + place)
        for batch in range(rounds)
        for rank in range(len(payloads_D))
        for place in range(mbs)
    ]
