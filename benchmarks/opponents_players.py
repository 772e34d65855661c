"""One job for several writers: N rows of token ids with a teacher's targets, written and read back.

Each player writes with its own writer, as its own command does, into about ten files, and reads
with its own reader; rows come back as digests. The others' sources are imported from where they
were unpacked, never copied. torchvision, which one of them imports for images, is an empty module.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from bench_scaling import save_teacher

import cachekd
from cachekd.types import TopKLogits

TOKENS, FILES = 16, 10
PACE_SECONDS = 0.001  # what a teacher takes for a row, so that there is time to be killed in


@dataclass(frozen=True, slots=True)
class Player:
    """A writer and reader with its settings.

    Attributes:
        write: writes rows ``first`` to ``last`` into a folder: the command that a user repeats.
        read: digests of all rows of a folder; a second folder is where it may keep its own files.
        salvage: digests of the rows that can be had after the writer was killed.
        data: which files hold rows.
    """

    name: str
    settings: str
    write: Callable[[Path, int, int], None]
    read: Callable[[Path, Path], list[str]]
    salvage: Callable[[Path, Path], list[str]]
    data: re.Pattern[str]

    def files(self, folder: Path) -> list[Path]:
        """Data files, sorted."""
        found = (path for path in folder.rglob("*") if path.is_file())
        return sorted(path for path in found if self.data.fullmatch(str(path.relative_to(folder))))


def ids_of(row: int) -> Any:
    """Token ids of a row, int32 [TOKENS]."""
    return np.random.default_rng([5, row]).integers(0, 256, TOKENS, dtype=np.int32)


def targets_of(row: int) -> Any:
    """Encoded targets of a row, made up, uint8 [TOKENS, 40]."""
    return np.random.default_rng([6, row]).integers(0, 256, (TOKENS, 40), dtype=np.uint8)


def digest(*arrays: Any) -> str:
    """Digest of a row's arrays."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


def _by_token(logits: TopKLogits) -> tuple[Any, ...]:
    """Targets with the entries of each row by token: the order of equal ones is the packing's."""
    row_n = np.repeat(np.arange(logits.rows), np.diff(logits.offsets))
    order_n = np.lexsort((logits.ids, row_n))
    entries = logits.offsets, logits.ids[order_n], logits.logprobs[order_n]
    return *entries, logits.tail, logits.next_logprob, logits.entropy


def cachekd_player(base: Path, rows: int) -> Player:
    """This project: `precompute` with a teacher that needs no model."""
    teacher = save_teacher(base / "teacher")

    def write(folder: Path, first: int, last: int) -> None:
        data = base / f"rows-{first}-{last}.jsonl"
        lines = (json.dumps({"input_ids": ids_of(row).tolist()}) for row in range(first, last))
        if not data.exists():
            data.write_text("\n".join(lines) + "\n")
        cachekd.precompute(
            cachekd.PrecomputeConfig(
                teacher=str(teacher),
                backend="dummy",
                data=(str(data),),
                cache=str(folder),
                logits_top_k=8,
                batch_tokens=4 * TOKENS,
                unit_tokens=rows * TOKENS // FILES,
                threads=1,
                check_disk=False,
            )
        )

    def read(folder: Path, _own: Path, partial: bool = False) -> list[str]:
        cache = cachekd.open_cache(str(folder), partial=partial)
        return [digest(record.input_ids, *_by_token(record.logits)) for record in cache]

    return Player(
        "cachekd",
        "defaults; the disk check before the start is off, so that writing meets a full disk",
        write,
        read,
        lambda folder, own: read(folder, own, partial=True),
        re.compile(r"(logits|samples)/[0-9a-f]+\.parquet"),
    )


def distillkit_player(source: Path, rows: int) -> Player:
    """DistillKit: the writer of its capture command, with that command's settings."""
    sys.path.insert(0, str(source))
    from distillkit.sample_common import StreamingParquetWriter, compressed_logit_schema

    each = rows // FILES

    def write(folder: Path, first: int, last: int) -> None:
        with StreamingParquetWriter(
            str(folder),
            compressed_logit_schema(),
            file_max_rows=each,
            write_batch_size=each,
            queue_maxsize=2 * each,
        ) as writer:
            for row in range(first, last):
                time.sleep(PACE_SECONDS)
                targets = targets_of(row)
                writer.write(
                    {
                        "input_ids": ids_of(row).astype(np.uint64),
                        "compressed_logprobs": list(targets[:, :16]),
                        "bytepacked_indices": list(targets[:, 16:]),
                    }
                )

    def digests(path: Path) -> Iterable[str]:
        columns = pq.ParquetFile(path).read().to_pydict()
        for ids, values, indices in zip(*columns.values(), strict=True):
            parts = [bytes(value) for value in (*values, *indices)]
            yield digest(np.array(ids, np.uint64), *(np.frombuffer(p, np.uint8) for p in parts))

    def read(folder: Path, _own: Path) -> list[str]:
        return [one for path in sorted(folder.glob("*.parquet")) for one in digests(path)]

    def salvage(folder: Path, _own: Path) -> list[str]:
        found: list[str] = []
        for path in sorted(folder.glob("*.parquet")):
            try:
                found += digests(path)
            except (OSError, ValueError):  # no footer: its rows are lost, those of others are not
                continue
        return found

    return Player(
        "distillkit",
        "file_max_rows and queue_maxsize in the proportions of its command; a file for each batch",
        write,
        read,
        salvage,
        re.compile(r"data_\d+\.parquet"),
    )


def streaming_players(source: Path, rows: int) -> list[Player]:
    """mosaicml/streaming: as it is, and with hashes written and validated."""
    import transformers.feature_extraction_utils  # noqa: F401  # it asks for torchvision first

    for name in ("", ".datasets", ".transforms", ".transforms.functional"):
        sys.modules[f"torchvision{name}"] = types.ModuleType(f"torchvision{name}")
    sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
    sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]
    sys.path.insert(0, str(source))
    from streaming.base import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    columns = {"input_ids": "ndarray:int32", "targets": "ndarray:uint8"}
    size = (TOKENS * 44 + 40) * (rows // FILES)

    def writer(**options: Any) -> Callable[[Path, int, int], None]:
        def write(folder: Path, first: int, last: int) -> None:
            where = str(folder)
            with MDSWriter(out=where, columns=columns, size_limit=size, **options) as out:
                for row in range(first, last):
                    time.sleep(PACE_SECONDS)
                    out.write({"input_ids": ids_of(row), "targets": targets_of(row)})

        return write

    def rows_of(**options: Any) -> list[str]:
        clean_stale_shared_memory()
        data = StreamingDataset(batch_size=1, **options)
        found = [digest(data[i]["input_ids"], data[i]["targets"]) for i in range(len(data))]
        del data
        clean_stale_shared_memory()
        return found

    def validated(folder: Path, own: Path) -> list[str]:
        return rows_of(remote=str(folder), local=str(own), validate_hash="sha256")

    def plain(folder: Path, _own: Path) -> list[str]:
        return rows_of(local=str(folder))

    data = re.compile(r"shard\.\d+\.mds")
    hashed = writer(hashes=["sha256"], exist_ok=True)
    best = "hashes=['sha256'], exist_ok=True; validate_hash='sha256', remote and local apart"
    return [
        Player("streaming", "defaults, read in place", writer(), plain, plain, data),
        Player("streaming, best", best, hashed, validated, validated, data),
    ]
