"""The sample that a plan measures: random documents from all over the data, in two halves.

Comes in: prepared data. Goes out: documents to learn priors from, documents to measure, and the
counts of the whole that figures are extrapolated to. One document is drawn from each of as many
equal ranges as are asked for, so that a file sorted by length or by source is covered evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cachekd.capture.identify import load_tokenizer
from cachekd.config import PlanConfig, precompute_config
from cachekd.data.alignment import LossMask, trained_rows
from cachekd.data.packed import Places
from cachekd.data.samples import prepare
from cachekd.data.sources import read_rows
from cachekd.errors import DataError
from cachekd.evaluation.dense import Rows
from cachekd.store.samples import keys_of, sample_ids, write_samples
from cachekd.store.tokenizer import tokenizer_facts
from cachekd.teachers import TeacherFacts
from cachekd.types import Int32, Sample

_INDEX_BYTES = 24


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Document:
    """A document of the sample: its key, token ids, and the rows that would be captured."""

    key: bytes
    input_ids: Int32
    rows: Rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataSample:
    """Documents that are measured, and the whole that they stand for.

    Attributes:
        learned: documents that priors are learned from; none of them is measured.
        measured: documents whose figures count.
        samples: samples of the whole data.
        documents: distinct documents of the whole data; each is stored once.
        tokens: tokens of these documents.
        bookkeeping: bytes that samples tables and the index take for the whole data.
        skipped: rows left out, by reason.
    """

    learned: tuple[Document, ...]
    measured: tuple[Document, ...]
    samples: int
    documents: int
    tokens: int
    bookkeeping: int
    skipped: dict[str, int]


def draw_sample(config: PlanConfig, facts: TeacherFacts, clock: Any) -> DataSample:
    """Tokenise all data as precompute does, and draw a seeded sample.

    Raises:
        ConfigError, DataError, TeacherError: see `prepare`; or there is one document only.
    """
    settings = precompute_config(config)
    prepared = prepare(
        read_rows(settings),
        settings,
        load_tokenizer(settings, facts),
        context_length=facts.context_length,
        vocab_size=tokenizer_facts(facts.tokenizer_folder).vocab_size,
        clock=clock,
    )
    keys = keys_of(prepared.samples)
    places = Places(keys).firsts()
    drawn = [int(places[i]) for i in spread(len(places), config.samples, config.seed)]
    drawn_documents = [_document(prepared.samples[i], keys[i], config.rows) for i in drawn]
    chosen = [document for document in drawn_documents if document.rows.any()]
    if len(chosen) < 2:
        raise DataError(
            "plan: expected at least 2 different documents with rows to capture, one to learn from "
            f"and one to measure; found {len(chosen)}"
        )
    some = [prepared.samples[i] for i in drawn]
    table = write_samples(some, keys.take(drawn), sample_ids(some, keys.take(drawn)), drawn)
    return DataSample(
        learned=tuple(chosen[0::2]),
        measured=tuple(chosen[1::2]),
        samples=len(keys),
        documents=len(places),
        tokens=int(prepared.samples.lengths()[places].sum()),
        bookkeeping=round(table.size / len(some) * len(keys)) + _INDEX_BYTES * len(places),
        skipped=dict(prepared.skipped),
    )


def spread(count: int, wanted: int, seed: int) -> Sequence[int]:
    """Random numbers below ``count`` in random order, one of each of ``wanted`` equal ranges."""
    random = np.random.default_rng(seed)
    edges = np.linspace(0, count, min(count, wanted) + 1).astype(np.int64)
    chosen: list[int] = random.permutation(random.integers(edges[:-1], edges[1:])).tolist()
    return chosen


def _document(sample: Sample, key: bytes, rows: str) -> Document:
    everything = np.ones(len(sample.input_ids) - 1, bool)
    wanted = (
        everything
        if rows == "all"
        else trained_rows(sample.roles, sample.prompt_length, LossMask.AUTO)
    )
    return Document(key=key, input_ids=sample.input_ids, rows=wanted)
