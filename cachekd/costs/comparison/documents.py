"""The documents that both ways are measured on: a random sample of the data, tokenised once.

In: settings and the facts of the teacher. Out: a JSONL file of token ids with labels where rows are
trained, which precompute reads like any other data, and the counts of the whole data that figures
are extrapolated to.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from cachekd.capture.identify import load_tokenizer
from cachekd.config import BenchmarkConfig, precompute_config
from cachekd.costs.comparison.processor import cpu_seconds
from cachekd.costs.sample import spread
from cachekd.data.alignment import LossMask, trained_rows
from cachekd.data.packed import Places
from cachekd.data.samples import prepare
from cachekd.data.sources import read_rows
from cachekd.errors import DataError
from cachekd.store.samples import keys_of
from cachekd.store.tokenizer import tokenizer_facts
from cachekd.teachers import TeacherFacts
from cachekd.types import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """What is measured, and the whole that it stands for.

    Attributes:
        path: JSONL file of the sample.
        drawn: documents of the sample.
        drawn_tokens: tokens of them.
        samples: samples of the whole data: an epoch sees each once.
        sample_tokens: tokens of these.
        documents: distinct documents: each is captured once.
        tokens: tokens of these.
        skipped: rows left out, by reason.
        seconds: that reading and tokenising the whole data took.
        cpu: processor time of that.
    """

    path: Path
    drawn: int
    drawn_tokens: int
    samples: int
    sample_tokens: int
    documents: int
    tokens: int
    skipped: dict[str, int]
    seconds: float
    cpu: float

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types; the file is gone when the report is read."""
        names = ("samples", "sample_tokens", "documents", "tokens", "drawn", "drawn_tokens")
        plain: dict[str, Any] = {name: getattr(self, name) for name in names}
        return plain | {"skipped": self.skipped, "prepare_seconds": self.seconds}


def draw(config: BenchmarkConfig, facts: TeacherFacts, path: Path) -> Documents:
    """Tokenise all data as precompute does, and write a seeded sample of its documents.

    Raises:
        ConfigError, DataError, TeacherError: see `prepare`; or no document has a trained row.
    """
    settings = precompute_config(config)
    tokenizer = load_tokenizer(settings, facts)  # imports its library: every process counts that
    started, cpu = time.monotonic(), cpu_seconds()
    prepared = prepare(
        read_rows(settings),
        settings,
        tokenizer,
        context_length=facts.context_length,
        vocab_size=tokenizer_facts(facts.tokenizer_folder).vocab_size,
        clock=datetime.now(),
    )
    seconds, cpu = time.monotonic() - started, cpu_seconds() - cpu
    lengths = prepared.samples.lengths()
    places = Places(keys_of(prepared.samples)).firsts()
    chosen = [int(places[i]) for i in spread(len(places), config.samples, config.seed)]
    rows = [_row(prepared.samples[i]) for i in chosen]
    trained = [row for row in rows if any(label != -100 for label in row["labels"][1:])]
    if not trained:
        raise DataError(
            f"benchmark: expected documents with rows to train on; found none among {len(rows)}"
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in trained), encoding="utf-8")
    return Documents(
        path=path,
        drawn=len(trained),
        drawn_tokens=sum(len(row["input_ids"]) for row in trained),
        samples=len(lengths),
        sample_tokens=int(lengths.sum()),
        documents=len(places),
        tokens=int(lengths[places].sum()),
        skipped=dict(prepared.skipped),
        seconds=seconds,
        cpu=cpu,
    )


def _row(sample: Sample) -> dict[str, list[int]]:
    """Its tokens, with labels where training would have them."""
    rows = trained_rows(sample.roles, sample.prompt_length, LossMask.AUTO)
    labels = np.concatenate([[-100], np.where(rows, sample.input_ids[1:], -100)])
    return {"input_ids": sample.input_ids.tolist(), "labels": labels.astype(int).tolist()}
