"""Axolotl: rows of tokens and targets, as its KD plugin trains on them.

    input_ids, labels (-100 where not trained), target_token_ids, target_logprobs and target_mask
    [tokens][k]

Row t is the distribution over ``input_ids[t + 1]``: the trainer compares it with the student's
logits at t. Sets that were filled from the left, where row t is about token t, need ``--shift -1``,
which the check of shifts finds. An entry whose mask is 0 is not trained on, and not taken over.
Axolotl's own loader normalises over the k entries, at its ``kd_temperature``; nothing in the file
says whether it did, so the first rows' masses tell, and temperature 1 is taken for granted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pyarrow as pa

from cachekd.config import ExportConfig, ImportConfig
from cachekd.data.alignment import LossMask, trained_rows
from cachekd.exchange import Document, Reading, Writing
from cachekd.exchange._files import list_of, numbers, tables
from cachekd.exchange._lists import (
    IGNORED,
    documents_of,
    list_column,
    nested,
    nested_rows,
    roles_of,
)
from cachekd.exchange._rectangular import extent_of, lost_of, rectangle
from cachekd.store.reader import Cache
from cachekd.types import Int64, Record

_FILLER = -1e9  # as Axolotl's collator fills short rows
_COLUMNS = ("input_ids", "target_token_ids", "target_logprobs")


class Axolotl:
    """See the module's text."""

    lacks: ClassVar[tuple[str, ...]] = (
        "tail mass",
        "log-probability of the next token",
        "entropy",
        "log-normalisers",
        "temperature",
        "targets of tokens that are not trained",
        "roles other than trained and not",
        "teacher and weights",
    )

    @staticmethod
    def read(config: ImportConfig, vocab_size: int) -> Reading:
        """See `cachekd.exchange.Format.read`."""
        batches, _, total = tables(config.source, _COLUMNS, "Axolotl")
        return Reading(documents=documents_of(batches, _document), values="auto", total=total)

    @staticmethod
    def write(config: ExportConfig, cache: Cache) -> Writing:
        """See `cachekd.exchange.Format.write`."""
        extent = extent_of(cache, config.k, "axolotl")
        renormalised = config.values == "renormalised"
        lost = lost_of(cache, extent, [what for what in Axolotl.lacks if what != "temperature"])
        return Writing(
            schema=_SCHEMA,
            table=lambda records: _table(records, extent.k, renormalised),
            files={},
            width=extent.k,
            lost=lost,
            notes=(
                "Rows are tokenised: name the folder as a dataset of a config with "
                "`plugins: [axolotl.integrations.kd.KDPlugin]`. Log-probabilities are at "
                + (
                    "temperature 1, normalised over the entries of a row, as `kd_normalize_topk: "
                    "true` has the student's."
                    if renormalised
                    else "temperature 1 over the whole vocabulary: train with "
                    "`kd_normalize_topk: false`."
                )
            ),
        )


def _document(source: str, row: int, batch: pa.RecordBatch, place: int) -> Document | str:
    """A document, or what is wrong with its lists."""
    names = batch.schema.names
    tokens = _flat(batch, "input_ids", place)
    counts, ids = nested_rows(batch.column("target_token_ids"), place, np.int64)
    own, logs = nested_rows(batch.column("target_logprobs"), place, np.float32)
    if len(counts) != len(own) or (counts != own).any():
        return f"target_token_ids and target_logprobs do not agree in their {len(counts)} rows"
    if len(counts) not in (len(tokens), len(tokens) - 1):
        return f"{len(counts)} rows of targets beside {len(tokens)} token ids"
    if "target_mask" in names:
        widths, mask = nested_rows(batch.column("target_mask"), place, np.int64)
        if len(widths) != len(counts) or (widths != counts).any():
            return f"target_mask and target_token_ids do not agree in their {len(counts)} rows"
        logs = np.where(mask != 0, logs, -np.inf).astype(np.float32)
    labels = _flat(batch, "labels", place) if "labels" in names else None
    if labels is not None and len(labels) != len(tokens):
        return f"{len(labels)} labels beside {len(tokens)} token ids"
    if labels is not None and ((labels != IGNORED) & (labels != tokens)).any():
        return "labels are other tokens than input_ids"
    roles, prompt_length = roles_of(len(tokens), None if labels is None else labels != IGNORED)
    return Document(
        source=source,
        row=row,
        input_ids=tokens,
        counts=counts,
        ids=ids,
        logprobs=logs,
        roles=roles,
        prompt_length=prompt_length,
    )


def _flat(batch: pa.RecordBatch, name: str, place: int) -> Int64:
    offsets, values = list_of(batch.column(name))
    first, last = offsets[place], offsets[place + 1]
    found: Int64 = numbers(values.slice(first, last - first), np.int64)
    return found


_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("attention_mask", pa.list_(pa.int8())),
        ("labels", pa.list_(pa.int32())),
        ("target_token_ids", pa.list_(pa.list_(pa.int32()))),
        ("target_logprobs", pa.list_(pa.list_(pa.float32()))),
        ("target_mask", pa.list_(pa.list_(pa.int8()))),
    ]
)


def _table(records: Sequence[Record], k: int, renormalised: bool) -> pa.RecordBatch:
    """Rows of Axolotl's columns: as many of targets as of tokens, the last one empty."""
    ids, logs, masks, labels = [], [], [], []
    for record in records:
        trained_R = trained_rows(record.roles, record.prompt_length, LossMask.AUTO)
        counts_R = np.minimum(np.diff(record.logits.offsets), k)
        ids_RK, logs_RK = rectangle(record.logits, k, _FILLER)
        if renormalised:
            held_RK = np.where(logs_RK > _FILLER, np.exp(logs_RK.astype(np.float64)), 0.0)
            norm_R = np.log(np.where(counts_R > 0, held_RK.sum(1), 1.0))
            logs_RK = np.where(logs_RK > _FILLER, logs_RK - norm_R[:, None], _FILLER)
        mask_RK = (np.arange(k) < counts_R[:, None]) & trained_R[:, None]
        last = np.full((1, k), _FILLER, np.float32)
        ids.append(np.concatenate([ids_RK, np.arange(k)[None]]).astype(np.int32))
        logs.append(np.concatenate([logs_RK, last]).astype(np.float32))
        masks.append(np.concatenate([mask_RK, np.zeros((1, k), np.bool_)]).astype(np.int8))
        own = np.where(np.append(False, trained_R), record.input_ids, IGNORED)
        labels.append(own.astype(np.int32))
    tokens = [record.input_ids for record in records]
    ones = [np.ones(len(own), np.int8) for own in tokens]
    flat = [list_column(part) for part in (tokens, ones, labels)]
    return pa.RecordBatch.from_arrays(
        [*flat, nested(ids), nested(logs), nested(masks)], schema=_SCHEMA
    )


PLUGIN = Axolotl
