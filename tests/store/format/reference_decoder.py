"""A second reader of the cache format: slow, obvious, and without cachekd or numpy.

Comes in: a folder, or the bytes of one file. Goes out: plain Python values. Parquet is opened with
pyarrow and frames with zstandard; the rest is the standard library. Records are decoded by
`reference_records.py` beside it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from reference_records import FormatError, check, decode, distribution, parse_prior

__all__ = ["FormatError", "Reader", "decode", "distribution", "parse_prior"]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical(value: Any) -> bytes:
    """Sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def json_id(value: Any) -> str:
    return hashlib.blake2b(canonical(value), digest_size=16).hexdigest()


def document_checksum(document: dict[str, Any]) -> str:
    return sha256(canonical({k: v for k, v in document.items() if k != "checksum"}))


def parse_document(kind: str, data: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(data)
    check(document["format"] == f"cachekd-{kind}", f"not a {kind}")
    check(document["checksum"] == document_checksum(document), f"{kind}: checksum")
    check(document["version"] == 2, f"{kind}: version")
    return document


def sample_key(input_ids: list[int]) -> bytes:
    packed = struct.pack(f"<{len(input_ids)}I", *input_ids)
    return hashlib.blake2b(packed, digest_size=16).digest()


def sample_id(
    key: bytes, roles: list[int], prompt_length: int | None, domain: str, weight: float, copy: int
) -> bytes:
    numbers = struct.pack("<qdq", -1 if prompt_length is None else prompt_length, weight, copy)
    packed = key + bytes(roles) + numbers + domain.encode()
    return hashlib.blake2b(packed, digest_size=16).digest()


def parse_index(data: bytes) -> dict[bytes, tuple[str, int]]:
    """Key to shard digest and row number."""
    magic, version, n_shards, n_keys = struct.unpack_from("<8sIIQ", data)
    check(magic == b"CKDINDEX" and version == 1, "index: head")
    shards_at, keys_at = 24, 24 + 32 * n_shards
    places_at = keys_at + 16 * n_keys
    check(len(data) == places_at + 8 * n_keys, "index: size")
    shards = [data[shards_at + 32 * i : shards_at + 32 * i + 32].hex() for i in range(n_shards)]
    keys = [data[keys_at + 16 * i : keys_at + 16 * i + 16] for i in range(n_keys)]
    check(keys == sorted(set(keys)), "index: order")
    numbers = struct.unpack_from(f"<{2 * n_keys}I", data, places_at)
    return {key: (shards[numbers[i]], numbers[n_keys + i]) for i, key in enumerate(keys)}


class Reader:
    """A sealed cache in a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        newest = max(
            (path for path in folder.glob("manifest-*.json")),
            key=lambda path: int(path.stem.split("-")[1]),
        )
        self.seal = parse_document("manifest", newest.read_bytes())
        self.cache = parse_document("cache", self.read("cache.json"))
        self.capture = parse_document("capture", self.read("logits/capture.json"))
        self._check_ids()
        for name, digest in self.seal["files"].items():
            check(sha256(self.read(name)) == digest, name)
        index = self.read(f"index/{self.seal['index']}")
        check(sha256(index) == self.seal["index"], "index: digest")
        self.index = parse_index(index)
        self.shards = {facts["digest"]: facts for facts in self.seal["kinds"]["logits"]["shards"]}
        self.priors = {digest: self._prior(digest) for digest in self.seal["priors"]}

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def _prior(self, digest: str) -> dict[str, Any]:
        data = self.read(f"priors/{digest}")
        check(sha256(data) == digest and len(data) == self.seal["priors"][digest], "prior: digest")
        return parse_prior(data)

    def _check_ids(self) -> None:
        source, capture, seal = self.cache, self.capture, self.seal
        check(source["source_id"] == json_id(source["source"]), "source id")
        facts = {"source_id": source["source_id"], "capture": capture["capture"]}
        check(capture["capture_id"] == json_id(facts), "capture id")
        shards = [facts["digest"] for facts in seal["kinds"]["logits"]["shards"]]
        root = {
            "source_id": source["source_id"],
            "capture_id": capture["capture_id"],
            "samples": sorted(seal["samples"]),
            "shards": sorted(shards),
        }
        check(seal["root"] == json_id(root), "root digest")

    def samples(self) -> Iterator[dict[str, Any]]:
        """Rows of the samples tables in order, each sample id once, with a role a token."""
        seen = set()
        for digest in self.seal["samples"]:
            path = self.folder / "samples" / f"{digest}.parquet"
            check(sha256(path.read_bytes()) == digest, path.name)
            for row in pq.read_table(path).to_pylist():
                starts = [0, *row["span_ends"][:-1]]
                row["roles"] = [
                    role
                    for role, start, end in zip(
                        row["span_roles"], starts, row["span_ends"], strict=True
                    )
                    for _ in range(start, end)
                ]
                if row["sample_id"] not in seen:
                    seen.add(row["sample_id"])
                    yield row

    def shard(self, digest: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Codec header and decoded rows of a shard."""
        path, facts = self.folder / "logits" / f"{digest}.parquet", self.shards[digest]
        data = path.read_bytes()
        check(sha256(data) == digest and len(data) == facts["bytes"], path.name)
        footer = int.from_bytes(data[-8:-4], "little") + 8
        check(sha256(data[-footer:]) == facts["footer"], f"{path.name}: footer")
        file = pq.ParquetFile(path, page_checksum_verification=True)
        metadata = file.schema_arrow.metadata
        check(metadata[b"capture_id"].decode() == self.capture["capture_id"], "capture of a shard")
        header = json.loads(metadata[b"codec"])
        check(header["prior"] == facts["prior"], "prior of a shard")
        rows = file.read().to_pylist()
        check([row["key"] for row in rows] == sorted(row["key"] for row in rows), "row order")
        for row in rows:
            if row["input_ids"] is not None:  # a cache may be shared without its text
                check(row["key"] == sample_key(row["input_ids"]), "key")
                check(row["n_tokens"] == len(row["input_ids"]), "n_tokens")
            shape = (row["n_tokens"] - 1, row["n_entries"])
            prior = self.priors[header["prior"]] if header["prior"] else None
            row["targets"] = decode(row["targets"], header, *shape, prior)
        return header, rows

    def records(self) -> Iterator[dict[str, Any]]:
        """Each sample with its token ids and targets, in the order of the cache."""
        shards = {digest: self.shard(digest)[1] for digest in self.shards}
        for sample in self.samples():
            digest, row = self.index[sample["key"]]
            stored = shards[digest][row]
            check(stored["key"] == sample["key"], "index points to another key")
            check(stored["n_tokens"] == sample["n_tokens"] == len(sample["roles"]), "tokens")
            yield {**sample, "input_ids": stored["input_ids"], "targets": stored["targets"]}


def plan_keys(data: bytes) -> list[list[bytes]]:
    """Keys of each unit of a plan."""
    plan = parse_document("plan", data)
    packed = base64.b64decode(plan["keys"], validate=True)
    keys = [packed[i : i + 16] for i in range(0, len(packed), 16)]
    units, first = [], 0
    for batches in plan["units"]:
        count = sum(rows for rows, _ in batches)
        units.append(keys[first : first + count])
        first += count
    check(first == len(keys), "plan: keys")
    return units
