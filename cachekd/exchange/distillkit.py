"""DistillKit: Parquet with compressed rows, the current schema and the legacy one.

    current   input_ids, compressed_logprobs [rows][bytes], bytepacked_indices [rows][bytes]
    legacy    input_ids, packed_indices [rows][words], exact_values [rows][..], coeffs [rows][..]

Row t is the distribution over ``input_ids[t + 1]``: DistillKit drops the empty first place of
vLLM's prompt log-probabilities, and trains row t against the student's logits at t. L tokens have
L - 1 rows, or L where tokens were cut to the rows. Packed sets number their documents in
``attention_mask``: each becomes a document of its own. The settings of the compressor stand beside
the data, in ``compression_config.yaml``; without them the bytes mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import yaml

from cachekd.config import ExportConfig, ImportConfig
from cachekd.errors import ConfigError, DataError
from cachekd.exchange import Broken, Document, Found, Reading, Writing
from cachekd.exchange._distillkit import (
    Compressor,
    LegacyCompressor,
    decode,
    decode_legacy,
    encode,
    settings_of,
)
from cachekd.exchange._files import File, files_of, list_of, numbers, tables
from cachekd.exchange._lists import list_column, nested
from cachekd.exchange._rectangular import extent_of, lost_of, rectangle
from cachekd.store.reader import Cache
from cachekd.types import Int64, Record

SETTINGS = "compression_config.yaml"
_CURRENT = ("input_ids", "compressed_logprobs", "bytepacked_indices")
_LEGACY = ("input_ids", "packed_indices", "exact_values", "coeffs")
_TERMS = (0, 1, 2, 3, 4, "sqrt")


@dataclass(frozen=True, slots=True, eq=False)
class _Lists:
    """A column [documents][rows][width] of a batch, flat."""

    offsets: Int64
    inner: Int64
    values: pa.Array

    def rows(self, place: int, width: int, dtype: Any) -> np.ndarray | str:
        """Rows of a document, [R, width], or what is wrong with them."""
        first, last = self.offsets[place], self.offsets[place + 1]
        widths = np.diff(self.inner[first : last + 1])
        if (widths != width).any():
            found = sorted({*widths.tolist()})[:3]
            return f"rows of {', '.join(map(str, found))} values where the settings say {width}"
        flat = self.values.slice(self.inner[first], self.inner[last] - self.inner[first])
        return numbers(flat, dtype).reshape(-1, width)


class DistillKit:
    """See the module's text."""

    lacks: ClassVar[tuple[str, ...]] = (
        "tail mass",
        "log-probability of the next token",
        "entropy",
        "log-normalisers",
        "roles",
        "teacher and weights",
    )

    @staticmethod
    def read(config: ImportConfig, vocab_size: int) -> Reading:
        """See `cachekd.exchange.Format.read`."""
        _, columns, _ = tables(config.source, ("input_ids",), "DistillKit")
        legacy = {*_LEGACY} <= {*columns}
        batches, _, total = tables(config.source, _LEGACY if legacy else _CURRENT, "DistillKit")
        file = _settings_file(config)
        settings = settings_of(_yaml(file), file.name, legacy=legacy)
        return Reading(
            documents=_documents(batches, settings),
            values="auto" if legacy else "logprobs",
            total=None if "attention_mask" in columns else total,
            notes={"compressor": asdict(settings)},
        )

    @staticmethod
    def write(config: ExportConfig, cache: Cache) -> Writing:
        """See `cachekd.exchange.Format.write`."""
        extent = extent_of(cache, config.k, "distillkit")
        k, least = extent.k, extent.least
        exact_k = min(config.exact_k or k, k)
        if exact_k < k and least < k:
            raise ConfigError(
                f"exact_k: a curve over the entries after the first {exact_k} needs rows of {k} "
                f"entries; some of the cache have {least}. Leave --exact-k out, or give --k {least}"
            )
        settings = Compressor(
            d=int(cache.identity.source["vocab_size"]),
            k=k,
            exact_k=exact_k,
            exact_dtype=config.exact_dtype,
            polynomial_terms=_TERMS if exact_k < k else (),
            delta_encoding=False,
            normalize_t=True,
        )
        plain = {**asdict(settings), "polynomial_terms": list(settings.polynomial_terms) or None}
        text = yaml.safe_dump({**plain, "residual_bins": []}, sort_keys=False)
        return Writing(
            schema=_SCHEMA,
            table=lambda records: _table(records, settings),
            files={SETTINGS: text},
            lost=lost_of(cache, extent, DistillKit.lacks),
            notes=(
                "Put the settings of `compression_config.yaml` under `teacher: "
                "logprob_compressor:` of the training YAML; a row has one distribution less than "
                "tokens, as DistillKit's own captures have. Places past the end of a short row "
                "hold ids of no mass."
            ),
        )


def _settings_file(config: ImportConfig) -> File:
    if config.compression_config is not None:
        return files_of([config.compression_config], [""])[0]
    first = files_of(config.source, [".parquet", ".arrow", ".jsonl"])[0]
    found = first.beside(SETTINGS)
    if not found.exists():
        raise ConfigError(
            f"compression_config: DistillKit's rows cannot be read without the settings of their "
            f"compressor, and there is no {SETTINGS} beside {first.name}. Give the YAML that the "
            "capture or the training used with --compression-config"
        )
    return found


def _yaml(file: File) -> Any:
    try:
        with file.open() as stream:
            return yaml.safe_load(stream.read(1 << 20))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file.name} cannot be read as YAML: {error}") from error


def _documents(
    batches: Iterator[tuple[str, int, pa.RecordBatch]], settings: Compressor | LegacyCompressor
) -> Iterator[Found]:
    for source, first, batch in batches:
        names = _LEGACY if isinstance(settings, LegacyCompressor) else _CURRENT
        tokens, ids, _ = list_of(batch.column("input_ids"))
        columns = {name: _lists(batch.column(name)) for name in names[1:]}
        packed = "attention_mask" in batch.schema.names
        masks = list_of(batch.column("attention_mask")) if packed else None
        for place in range(batch.num_rows):
            own = numbers(ids.slice(tokens[place], tokens[place + 1] - tokens[place]), np.int64)
            found = _entries(columns, place, settings)
            if isinstance(found, str):
                yield Broken(source=source, row=first + place, reason=found)
                continue
            segments = None
            if masks is not None:
                span = slice(masks[0][place], masks[0][place + 1])
                segments = numbers(masks[1].slice(span.start, span.stop - span.start), np.int64)
            yield from _split(source, first + place, own, *found, segments)


def _lists(column: pa.Array) -> _Lists:
    offsets, rows, _ = list_of(column)
    inner, values, _ = list_of(rows)
    return _Lists(offsets, inner, values)


def _entries(
    columns: Mapping[str, _Lists], place: int, settings: Compressor | LegacyCompressor
) -> tuple[np.ndarray, np.ndarray] | str:
    """Ids and values [R, k] of a document's rows, or what is wrong with them."""
    wanted: tuple[tuple[str, int, Any], ...]
    if isinstance(settings, LegacyCompressor):
        wanted = (
            ("packed_indices", settings.words, np.uint64),
            ("exact_values", settings.exact_k, np.float32),
            ("coeffs", settings.terms, np.float32),
        )
    else:
        wanted = (
            ("compressed_logprobs", settings.value_bytes, np.uint8),
            ("bytepacked_indices", settings.id_bytes, np.uint8),
        )
    parts = []
    for name, width, dtype in wanted:
        found = columns[name].rows(place, width, dtype)
        if isinstance(found, str):
            return f"{name}: {found} (settings of another compressor?)"
        parts.append(found)
    if len({len(part) for part in parts}) != 1:
        return f"columns of {', '.join(str(len(part)) for part in parts)} rows do not agree"
    if isinstance(settings, LegacyCompressor):
        return decode_legacy(settings, *parts)
    return decode(settings, *parts)


def _split(
    source: str,
    row: int,
    input_ids: Int64,
    ids_RK: np.ndarray,
    values_RK: np.ndarray,
    segments: Int64 | None,
) -> Iterator[Found]:
    """The document of a row, or the several that were packed into it."""
    length, rows = len(input_ids), len(ids_RK)
    if rows not in (length, length - 1):
        reason = f"{rows} rows beside {length} token ids; expected {length - 1} or {length}"
        yield Broken(source=source, row=row, reason=reason)
        return
    starts = [0, length]
    if segments is not None:
        if len(segments) != length:
            reason = f"attention_mask of {len(segments)} places beside {length} token ids"
            yield Broken(source=source, row=row, reason=reason)
            return
        starts = [0, *(np.flatnonzero(np.diff(segments)) + 1).tolist(), length]
    for start, stop in pairwise(starts):
        if stop - start < 2 or (segments is not None and segments[start] == 0):
            continue  # padding, or a document whose other tokens were cut off
        part = slice(start, stop - 1)
        yield Document(
            source=source,
            row=row,
            input_ids=input_ids[start:stop],
            counts=np.full(stop - 1 - start, ids_RK.shape[1], np.int64),
            ids=ids_RK[part].ravel(),
            logprobs=values_RK[part].ravel(),
        )


_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.uint64())),
        ("compressed_logprobs", pa.list_(pa.list_(pa.uint8()))),
        ("bytepacked_indices", pa.list_(pa.list_(pa.uint8()))),
    ]
)


def _table(records: Sequence[Record], settings: Compressor) -> pa.RecordBatch:
    """Rows of DistillKit's current schema."""
    values, packed, tokens = [], [], []
    for record in records:
        ids_RK, logs_RK = rectangle(record.logits, settings.k)
        parts = encode(settings, ids_RK, logs_RK)
        values.append(parts[0])
        packed.append(parts[1])
        tokens.append(record.input_ids)
    ids = list_column([own.astype(np.uint64) for own in tokens])
    return pa.RecordBatch.from_arrays([ids, nested(values), nested(packed)], schema=_SCHEMA)


PLUGIN = DistillKit
