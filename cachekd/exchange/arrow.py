"""Plain Arrow lists in Parquet: a record of a cache a row, in columns that any tool can read.

    input_ids, roles [tokens]; token_ids, logprobs [rows][entries]; prompt_length, domain, weight
    where known: tail, next_logprob, entropy, lognorm_<T> [rows]; weights [rows][entries] of draws

L tokens have L - 1 rows; row t is the distribution over ``input_ids[t + 1]``. Nothing of a record
is lost but who the teacher is; a column whose values are not known is not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from cachekd.config import ExportConfig, ImportConfig
from cachekd.errors import ConfigError, DataError
from cachekd.exchange import Document, Reading, Writing
from cachekd.exchange._files import list_of, numbers, tables
from cachekd.exchange._lists import documents_of, list_column, nested_rows, ragged, text_column
from cachekd.store.reader import Cache
from cachekd.store.tables import flat_column
from cachekd.types import Record, Role, TopKLogits

_COLUMNS = ("input_ids", "token_ids", "logprobs")
_NORM = "lognorm_"
_SAMPLED = (
    "the column weights marks sampled entries, whose seed and settings a table does not tell; only "
    "exact heads are imported"
)


class ArrowLists:
    """See the module's text."""

    lacks: ClassVar[tuple[str, ...]] = ("teacher and weights",)

    @staticmethod
    def read(config: ImportConfig, vocab_size: int) -> Reading:
        """See `cachekd.exchange.Format.read`."""
        batches, names, total = tables(config.source, _COLUMNS, "arrow")
        if "weights" in names:
            raise ConfigError(f"arrow: {_SAMPLED}")
        scalars: dict[str, str] = {name: name for name in ("tail", "entropy") if name in names}
        scalars |= {name: _norm(name) for name in names if name.startswith(_NORM)}
        document = partial(_document, scalars=scalars, next_="next_logprob" in names)
        return Reading(
            documents=documents_of(batches, document),
            values="logprobs" if "tail" in names else "auto",
            next_known="next_logprob" in names,
            scalars=tuple(scalars.values()),
            total=total,
        )

    @staticmethod
    def write(config: ExportConfig, cache: Cache) -> Writing:
        """See `cachekd.exchange.Format.write`."""
        if config.k is not None:
            raise ConfigError("k: plain lists hold rows of any length; leave --k out")
        known = cache.identity.capture.get("imported", {})
        names = [
            *(["tail"] if not str(known.get("tail", "")).startswith("unknown") else []),
            *(["next_logprob"] if known.get("next_logprob", "stored") == "stored" else []),
            *(["entropy"] if known.get("entropy", "stored") == "stored" else []),
        ]
        further = [float(t) for t in cache.identity.capture["temperatures"] if t != 1.0]
        drawn = "sampled" in str(cache.identity.capture["selection"].get("kind"))
        schema = _schema(names, further, drawn)
        totals = cache.totals
        return Writing(
            schema=schema,
            table=lambda records: _table(records, schema, names, further, drawn),
            files={},
            width=totals.get("entries", 0) // max(1, totals.get("targets", 0)),
            lost=list(ArrowLists.lacks),
            notes=(
                "Open it with `datasets.load_dataset`. Row t is the distribution over "
                "`input_ids[t + 1]`; `tail` is the log of the mass outside its entries."
            ),
        )


def _document(
    source: str,
    row: int,
    batch: pa.RecordBatch,
    place: int,
    scalars: Mapping[str, str],
    next_: bool,
) -> Document | str:
    """A document, or what is wrong with its lists."""
    if "weights" in batch.schema.names and batch.column("weights")[place].is_valid:
        return _SAMPLED
    counts, ids = nested_rows(batch.column("token_ids"), place, np.int64)
    own, logs = nested_rows(batch.column("logprobs"), place, np.float32)
    if len(counts) != len(own) or (counts != own).any():
        return f"token_ids and logprobs do not agree in their {len(counts)} rows"
    names = [*scalars, *(["next_logprob"] if next_ else [])]
    if lacking := [name for name in names if name not in batch.schema.names]:
        return f"it has no {', '.join(lacking)}, which the first rows have"
    columns = {name: _list(batch, name, place, np.float32) for name in names}
    tokens = _list(batch, "input_ids", place, np.int64)
    lengths = {"token_ids": len(counts), **{name: len(part) for name, part in columns.items()}}
    for name, length in lengths.items():
        if length != len(tokens) - 1:
            return f"{name} has {length} rows beside {len(tokens)} token ids"
    return Document(
        source=source,
        row=row,
        input_ids=tokens,
        counts=counts,
        ids=ids,
        logprobs=logs,
        next_logprob=columns.get("next_logprob"),
        scalars={own: columns[name] for name, own in scalars.items()},
        **_facts(batch, place, len(tokens)),
    )


def _norm(name: str) -> str:
    """The scalar of a column ``lognorm_<T>``.

    Raises:
        DataError: it names no temperature.
    """
    try:
        temperature = float(name[len(_NORM) :])
    except ValueError:
        temperature = 0.0
    if not 0 < temperature < float("inf"):
        raise DataError(
            f"arrow: expected columns {_NORM}<temperature>, such as {_NORM}2.0; found "
            f"{name!r:.80}. Rename it"
        )
    return f"lognorm:{temperature}"


def _facts(batch: pa.RecordBatch, place: int, length: int) -> dict[str, Any]:
    """Roles, prompt, weight and domain of a document, as far as they are there.

    Raises:
        DataError: one of them cannot be.
    """
    there = batch.schema.names

    def one(name: str, missing: Any) -> Any:
        return batch.column(name)[place].as_py() if name in there else missing

    roles = _list(batch, "roles", place, np.int64) if "roles" in there else None
    prompt, weight, domain = one("prompt_length", None), one("weight", 1.0), one("domain", "")
    if roles is not None and not {*roles.tolist()} <= {*Role}:
        raise DataError("roles hold numbers that are no roles")
    if prompt is not None and not (type(prompt) is int and 0 <= prompt <= length):
        raise DataError(f"prompt_length {prompt!r:.40} of {length} token ids")
    if type(weight) not in (int, float) or not 0 <= weight < float("inf"):
        raise DataError(f"weight {weight!r:.40}; expected a number of at least 0")
    if not isinstance(domain, str | None):
        raise DataError(f"domain {domain!r:.40}; expected text")
    return {
        "roles": None if roles is None else roles.astype(np.uint8),
        "prompt_length": prompt,
        "weight": float(weight),
        "domain": domain or "",
    }


def _list(batch: pa.RecordBatch, name: str, place: int, dtype: Any) -> np.ndarray:
    offsets, values = list_of(batch.column(name))
    first, last = offsets[place], offsets[place + 1]
    return numbers(values.slice(first, last - first), dtype)


def _schema(names: Sequence[str], temperatures: Sequence[float], drawn: bool) -> pa.Schema:
    floats = pa.list_(pa.float32())
    return pa.schema(
        [
            ("input_ids", pa.list_(pa.int32())),
            ("roles", pa.list_(pa.uint8())),
            ("prompt_length", pa.int32()),
            ("domain", pa.string()),
            ("weight", pa.float64()),
            ("token_ids", pa.list_(pa.list_(pa.int32()))),
            ("logprobs", pa.list_(floats)),
            *([("weights", pa.list_(floats))] if drawn else []),
            *((name, floats) for name in names),
            *((f"{_NORM}{t}", floats) for t in temperatures),
        ]
    )


def _table(
    records: Sequence[Record],
    schema: pa.Schema,
    names: Sequence[str],
    temperatures: Sequence[float],
    drawn: bool,
) -> pa.RecordBatch:
    logits = [record.logits for record in records]
    counts = [np.diff(one.offsets) for one in logits]
    arrays = [
        list_column([record.input_ids for record in records]),
        list_column([record.roles for record in records]),
        _lengths([record.prompt_length for record in records]),
        text_column([record.domain for record in records]),
        flat_column(np.array([record.weight for record in records]), pa.float64()),
        ragged(counts, [one.ids for one in logits]),
        ragged(counts, [one.logprobs for one in logits]),
        *([ragged(counts, [_weights(one) for one in logits])] if drawn else []),
        *(list_column([getattr(one, name) for one in logits]) for name in names),
        *(list_column([one.lognorm[t] for one in logits]) for t in temperatures),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _lengths(values: Sequence[int | None]) -> pa.Array:
    """A column of lengths, of which some are not known."""
    known = np.array([value is not None for value in values])
    return flat_column(np.array([v or 0 for v in values], np.int32), pa.int32(), known)


def _weights(logits: TopKLogits) -> np.ndarray:
    return np.zeros(len(logits.ids), np.float32) if logits.weights is None else logits.weights


PLUGIN = ArrowLists
