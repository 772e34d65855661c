"""DistillKit: Parquet with compressed rows, the current schema and the legacy one.

    current   input_ids, compressed_logprobs [rows][bytes], bytepacked_indices [rows][bytes]
    legacy    input_ids, packed_indices [rows][words], exact_values [rows][..], coeffs [rows][..]

Row t is the distribution over ``input_ids[t + 1]``: DistillKit drops the empty first place of
vLLM's prompt log-probabilities, and trains row t against the student's logits at t. L tokens have
L - 1 rows, or L where tokens were cut to the rows. Packed sets number their documents in
``attention_mask``: each becomes a document of its own. The settings of the compressor stand beside
the data, in ``compression_config.yaml``; without them the bytes mean nothing.

DistillKit trains on every row, also on one of fillers, but those whose own token has the label
-100: it masks row t by ``labels[t]``, and not by the label of the token that the row predicts. So
where a cache lacks rows, ``labels`` are written that are -100 at such a row's token and at the one
that it predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import yaml

from cachekd.config import ExportConfig, ImportConfig
from cachekd.errors import ConfigError, DataError
from cachekd.exchange import Reading, Writing
from cachekd.exchange._distillkit import Compressor, encode, settings_of
from cachekd.exchange._distillkit_rows import CURRENT, LEGACY, documents
from cachekd.exchange._files import tables
from cachekd.exchange._lists import IGNORED, list_column, nested
from cachekd.exchange._rectangular import extent_of, lost_of, rectangle
from cachekd.exchange._sources import File, files_of
from cachekd.store.reader import Cache
from cachekd.types import Int64, Record

SETTINGS = "compression_config.yaml"
_TERMS = (0, 1, 2, 3, 4, "sqrt")
_MASKED = "targets of rows whose own token is not trained"


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
        legacy = {*LEGACY} <= {*columns}
        batches, _, total = tables(config.source, LEGACY if legacy else CURRENT, "DistillKit")
        file = _settings_file(config)
        settings = settings_of(_yaml(file), file.name, legacy=legacy)
        return Reading(
            documents=documents(batches, settings),
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
        lost = [*lost_of(cache, extent, DistillKit.lacks), *([_MASKED] if extent.empty else [])]
        schema = _SCHEMA.append(_LABELS) if extent.empty else _SCHEMA
        return Writing(
            schema=schema,
            table=lambda records: _table(records, settings, schema),
            files={SETTINGS: text},
            width=k,
            lost=lost,
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


_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.uint64())),
        ("compressed_logprobs", pa.list_(pa.list_(pa.uint8()))),
        ("bytepacked_indices", pa.list_(pa.list_(pa.uint8()))),
    ]
)


_LABELS = pa.field("labels", pa.list_(pa.int64()))


def _table(records: Sequence[Record], settings: Compressor, schema: pa.Schema) -> pa.RecordBatch:
    """Rows of DistillKit's current schema."""
    values, packed, tokens = [], [], []
    for record in records:
        ids_RK, logs_RK = rectangle(record.logits, settings.k)
        parts = encode(settings, ids_RK, logs_RK)
        values.append(parts[0])
        packed.append(parts[1])
        tokens.append(record.input_ids)
    ids = list_column([own.astype(np.uint64) for own in tokens])
    columns = [ids, nested(values), nested(packed)]
    if _LABELS.name in schema.names:
        columns.append(list_column([_labels(record) for record in records]))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _labels(record: Record) -> Int64:
    """Token ids; -100 where the row of the token, or the one that predicts it, has no target."""
    held_N = np.diff(record.logits.offsets) > 0
    trained = np.append(held_N, True) & np.append(True, held_N)
    return np.where(trained, record.input_ids, IGNORED).astype(np.int64)


PLUGIN = DistillKit
