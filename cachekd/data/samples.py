"""Rows to samples: the whole way from data to token ids.

In: rows with their source, the settings, and the teacher's tokenizer, context and vocabulary.
Out: `Prepared`: samples in the order of the rows, and how many rows were left out or changed, by
reason. All of it happens before a teacher is loaded, so that wrong data costs no time on a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from cachekd.config import DataConfig
from cachekd.data.columns import (
    check_columns,
    column_map,
    read_domain,
    read_noun,
    read_weight,
)
from cachekd.data.documents import Document, Wording, document, wording
from cachekd.data.encoding import Encoded, Encoder, encode, make_encoder
from cachekd.data.lengths import Fitted, fit, fit_prompt, longest
from cachekd.data.nouns import BadRow
from cachekd.data.prompts import question
from cachekd.data.spool import SpooledSamples
from cachekd.errors import DataError
from cachekd.types import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GROUP = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Samples, and what became of the rows that did not make it whole.

    Attributes:
        samples: in the order of the rows; their tokens wait on disk. Where responses are still to
            be written, prompts alone (of at least one token).
        skipped: reason -> rows left out (for split rows: windows left out).
        changed: how -> rows changed: "truncated", "split", "last window of 1 token dropped".
    """

    samples: SpooledSamples
    skipped: Mapping[str, int]
    changed: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    source: str
    row: int
    domain: str
    weight: float
    document: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What stays the same from row to row, and the counts that grow."""

    config: DataConfig
    names: Mapping[str, str]
    style: Wording
    encoder: Encoder
    limit: int
    vocab_size: int
    new_tokens: int | None
    skipped: Counter[str]
    changed: Counter[str]


def prepare(
    rows: Iterable[tuple[str, int, Mapping[str, Any]]],
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context_length: int,
    vocab_size: int,
    clock: datetime,
    new_tokens: int | None = None,
) -> Prepared:
    """Turn rows into samples.

    Args:
        rows: what `cachekd.data.sources.read_rows` gives.
        config: settings of the data.
        tokenizer: the teacher's.
        context_length: most tokens the teacher takes; ``max_length`` can only lower it.
        vocab_size: real vocabulary of the teacher; ids lie below it.
        clock: the time that chat templates are told.
        new_tokens: take prompts alone, with room for so many tokens of a response.

    Raises:
        ConfigError: a setting is wrong.
        DataError: a row cannot be used, a source has no known layout, or no sample is left.
        StoreError: the folder for temporary files is too small for the tokens.
    """
    job = _Job(
        config=config,
        names=column_map(config),
        style=wording(config, tokenizer, clock),
        encoder=make_encoder(tokenizer, add_eos=config.add_eos),
        limit=longest(config.max_length, context_length),
        vocab_size=vocab_size,
        new_tokens=new_tokens,
        skipped=Counter(),
        changed=Counter(),
    )
    remaining = _checked(rows, job.names)
    groups = iter(lambda: list(islice(remaining, _GROUP)), [])
    samples = SpooledSamples()
    for group in groups:
        for sample in _prepare_group(group, job):
            samples.append(sample)
    if not samples:
        counts = ", ".join(f"{n} {reason}" for reason, n in job.skipped.items())
        raise DataError(f"no sample is left to use; left out: {counts or 'nothing'}")
    return Prepared(samples=samples, skipped=dict(job.skipped), changed=dict(job.changed))


def _checked(
    rows: Iterable[tuple[str, int, Mapping[str, Any]]], names: Mapping[str, str]
) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """The rows, once the first of each source has a layout."""
    sources: set[str] = set()
    for source, number, row in rows:
        # Two files of one name are two sources: the second begins at row 0 again.
        if number == 0 or source not in sources:
            check_columns(row, names, source)
            sources.add(source)
        yield source, number, row


def _prepare_group(
    group: Iterable[tuple[str, int, Mapping[str, Any]]], job: _Job
) -> Iterator[Sample]:
    drafts = list(_drafts(group, job))
    encoded = encode([draft.document for draft in drafts], job.encoder)
    for draft, result in zip(drafts, encoded, strict=True):
        try:
            sample = _sample(draft, result, job.vocab_size)
            fitted = _fitted(sample, job)
        except BadRow as error:
            _refuse(draft.source, draft.row, error, job)
            continue
        job.skipped.update(fitted.skipped)
        job.changed.update(fitted.changed)
        yield from fitted.samples


def _fitted(sample: Sample, job: _Job) -> Fitted:
    if job.new_tokens is None:
        return fit(sample, job.limit, job.config.on_long)
    return fit_prompt(sample, job.limit, job.config.on_long, job.new_tokens)


def _drafts(group: Iterable[tuple[str, int, Mapping[str, Any]]], job: _Job) -> Iterator[_Draft]:
    for source, number, row in group:
        try:
            noun = read_noun(row, job.names)
            yield _Draft(
                source=source,
                row=number,
                domain=read_domain(row, job.names),
                weight=read_weight(row, job.names),
                document=document(noun if job.new_tokens is None else question(noun), job.style),
            )
        except BadRow as error:
            _refuse(source, number, error, job)


def _sample(draft: _Draft, result: Encoded | BadRow, vocab_size: int) -> Sample:
    if isinstance(result, BadRow):
        raise result
    ids = result.ids
    if len(ids) < 2:
        raise BadRow("fewer than 2 tokens", f"expected at least 2 tokens, found {len(ids)}")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise BadRow(
            "token id outside the vocabulary",
            f"expected ids from 0 to {vocab_size - 1}, found {ids.min()} to {ids.max()}",
        )
    return Sample(
        input_ids=ids.astype(np.int32),
        roles=result.roles,
        prompt_length=result.prompt_length,
        domain=draft.domain,
        weight=draft.weight,
        source=draft.source,
        row=draft.row,
    )


def _refuse(source: str, number: int, error: BadRow, job: _Job) -> None:
    """Count a bad row, or fail because of it."""
    if job.config.on_bad == "fail":
        raise DataError(
            f"{source} row {number}: {error}. Correct the row, or leave such rows out with "
            "--on-bad skip"
        ) from error
    job.skipped[error.reason] += 1
