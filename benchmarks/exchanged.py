"""A cache that formats are written from, and how far what comes back is from it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from synthetic import Shape, targets

from cachekd import ImportConfig, import_cache, open_cache
from cachekd.store.reader import Cache
from cachekd.types import Record


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


class Made:
    """A cache, its tokenizer, and a folder for what is made of it."""

    def __init__(
        self, work: Path, cache: str | None, tokenizer: str | None, documents: int
    ) -> None:
        self.work = work
        self.tokenizer = tokenizer or str(made_up_tokenizer(work / "tokenizer"))
        if cache is None:
            made_up(work / "made-up.parquet", documents)
            imported(work / "made-up.parquet", "arrow", self, work / "made-up")
        self.cache: Cache = open_cache(cache or str(work / "made-up"))
        self.records: list[Record] = list(self.cache)
        self.rows = sum(record.logits.rows for record in self.records)


def made_up_tokenizer(folder: Path, vocab: int = 4096) -> Path:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def made_up(path: Path, documents: int) -> None:
    """Documents of 256 tokens with 64 entries a row, as plain lists."""
    shape, rng = Shape(shards=1, documents=1, tokens=256, vocab=4096), np.random.default_rng(0)
    rows = []
    for _ in range(documents):
        logits = targets(shape.tokens - 1, shape, rng)
        ids, logs = (a.reshape(-1, shape.k) for a in (logits.ids, logits.logprobs))
        tokens = [0, *(int(own[rng.integers(0, 4)]) for own in ids)]
        rows.append({"input_ids": tokens, "token_ids": ids.tolist(), "logprobs": logs.tolist()})
    pq.write_table(pa.Table.from_pylist(rows), path)


def imported(source: Path, name: str, made: Made, cache: Path, **further: Any) -> None:
    settings = {"teacher": "made-up", "tokenizer": made.tokenizer, **further}
    import_cache(ImportConfig(source=(str(source),), format=name, cache=str(cache), **settings))


def each_row(record: Record) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    offsets = record.logits.offsets
    for first, last in pairwise(offsets.tolist()):
        yield record.logits.ids[first:last], record.logits.logprobs[first:last]


def errors(made: Made, cache: Path, way: str, rows: int | None = None) -> dict[str, float]:
    """Largest differences of what was imported from the cache that it was written from.

    Of renormalised values the log-probabilities are compared as normalised ones, and no mass.
    """
    found = open_cache(str(cache))
    worst: Counter[str] = Counter()
    for record in made.records:
        cut = len(record.input_ids) if rows is None else rows + 1
        other = found.get(record.input_ids[:cut]).logits
        for row, (ids, logs) in enumerate(each_row(record)):
            own = slice(*other.offsets[row : row + 2]) if row < other.rows else slice(0, 0)
            if own.stop == own.start:
                continue
            logs = logs.astype(np.float64)
            mass = np.exp(logs).sum()
            if "renormalised" in way:
                logs = logs - np.log(mass)
            order, places = np.argsort(ids), np.argsort(other.ids[own])
            assert (ids[order] == other.ids[own][places]).all(), "the same entries"
            got = other.logprobs[own].astype(np.float64)
            _worse(worst, "logprob", np.abs(got[places] - logs[order]).max())
            if "renormalised" not in way:
                _worse(worst, "head_mass", abs(np.exp(got).sum() - mass))
                _worse(
                    worst,
                    "tail_mass",
                    abs(np.exp(other.tail[row]) - np.exp(record.logits.tail[row])),
                )
    return {name: float(f"{value:.3g}") for name, value in sorted(worst.items())}


def _worse(worst: Counter[str], name: str, value: Any) -> None:
    worst[name] = max(worst[name], float(value))  # type: ignore[assignment]
