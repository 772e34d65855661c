"""The first documents of a source: how many tokens there are, and what the values are.

Comes in: a `Reading`. Goes out: its first documents, which are taken off it, and the `Law` that all
documents are checked by.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np

from cachekd.config import ImportConfig
from cachekd.exchange import Document, Found, Reading
from cachekd.exchange._rows import Checked, Law, mass_of, rows_of

_LOOKED_AT = 64
_LOOKED_ROWS = 16_384
_WHOLE = 1e-3  # masses this near 1, of a part of the vocabulary, are normalised over it


def looked(reading: Reading) -> list[Found]:
    """The first documents, until they have many rows."""
    first, rows = [], 0
    for found in islice(reading.documents, _LOOKED_AT):
        first.append(found)
        rows += len(found.counts) if isinstance(found, Document) else 0
        if rows >= _LOOKED_ROWS:
            break
    return first


def expected_of(
    config: ImportConfig, reading: Reading, first: list[Found], documents: list[Document]
) -> int:
    """About how many tokens the source has."""
    tokens = sum(len(document.input_ids) for document in documents)
    if len(first) < _LOOKED_AT and tokens < _LOOKED_ROWS:
        return tokens  # that is all
    if reading.total is not None:
        return tokens * max(1, reading.total // len(first))
    return max(tokens, config.unit_tokens)


def law_of(
    config: ImportConfig, reading: Reading, documents: list[Document], vocab_size: int
) -> Law:
    """What all documents are checked by."""
    values = config.values if config.values != "auto" else reading.values
    if values == "auto":
        values = _seen(documents, vocab_size)
    return Law(
        vocab_size=vocab_size,
        values=values,
        shift=config.shift or 0,
        tolerance=config.mass_tolerance,
        rescale=config.rescale,
        scalars=reading.scalars,
        next_known=config.next_logprob == "auto" and reading.next_known is True,
    )


def with_next(law: Law, config: ImportConfig, reading: Reading, checked: list[Checked]) -> Law:
    """The same, and whether next tokens are told, where the first documents show that."""
    if reading.next_known is not None or config.next_logprob != "auto":
        return law
    return replace(law, next_known=not any(one.untold for one in checked))


def _seen(documents: list[Document], vocab_size: int) -> str:
    """What values are by their masses: all 1 in parts of a vocabulary says that they are scaled."""
    masses, parts = [], False
    for document in documents:
        row_n = rows_of(document.counts)
        good_n = ~np.isnan(document.logprobs)
        mass_R = mass_of(row_n[good_n], document.logprobs[good_n], len(document.counts))
        masses.append(mass_R[mass_R > 0])  # others hold fillers alone
        parts |= bool((document.counts < vocab_size).any())
    mass = np.concatenate(masses) if masses else np.zeros(0)
    scaled = parts and len(mass) > 0 and bool((np.abs(mass - 1) < _WHOLE).mean() > 0.99)
    return "renormalised" if scaled else "logprobs"


def rows_of_first(config: ImportConfig, checked: list[Checked]) -> str:
    """Which rows the documents have: as the user says, or all where the first ones have all."""
    if config.rows != "auto":
        return config.rows
    return "all" if all(map(_is_whole, checked)) else "response"


def _is_whole(checked: Checked) -> bool:
    """Whether all rows of a document are there, good or bad."""
    empty = np.diff(checked.logits.offsets) == 0
    empty[[row for rows in checked.bad.values() for row in rows]] = False
    return not empty.any()
