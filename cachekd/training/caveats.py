"""What is allowed and yet worth a warning before a student is loaded, from small files alone.

In: opened caches, their samples, and what the objective needs. Out: log lines.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cachekd.config import LEVEL_STEPS
from cachekd.data.models import token_policy
from cachekd.store.identity import said_of_import, warn_of_difference

if TYPE_CHECKING:
    from cachekd.objectives import Needs
    from cachekd.store.reader import Cache
    from cachekd.training.loader import CacheDataset

_LOOKED_AT = 32
_NAMES = ("teacher", "revision", "tokenizer", "adapter")
logger = logging.getLogger(__name__)
_FEW = 64
_OFTEN = 0.01


def warn_of_provenance(caches: Sequence[Cache], student: Path) -> None:
    """Warn where caches, or the student, make tokens of text in other ways than the first cache.

    Of one teacher, also where it came by another name or revision.
    """
    first = caches[0].identity if caches else None
    for cache in caches[1:]:
        assert first is not None, "there is a first"
        other = cache.identity
        same = first.source_id == other.source_id
        left = {k: v for k, v in first.provenance.items() if same or k not in _NAMES}
        names = (f"cache {caches[0].name!r}", f"cache {cache.name!r}")
        warn_of_difference("train", left, other.provenance, *names)
    for cache in caches:
        names = (f"cache {cache.name!r}", f"the student {student}")
        warn_of_difference("train", cache.identity.provenance, token_policy(student), *names)


def warn_of_asserted(caches: Sequence[Cache]) -> None:
    """Say once of each imported cache that its teacher is asserted, and what its rows lack."""
    for cache in caches:
        said = said_of_import(cache.identity)
        if said is not None:
            logger.warning("cache %r: %s", cache.name, said)


def warn_of_coarse_start(needs: Needs, caches: Sequence[Cache]) -> None:
    """Warn where the cache of the student as it starts is coarse.

    Its divergence from the student begins at 0 and stays small, so that rounding of stored values
    and a short head are soon as large as what is to be learned.
    """
    for cache in caches:
        if needs.start is None or cache.name != needs.start:
            continue
        capture, vocab = cache.identity.capture, int(cache.identity.source["vocab_size"])
        values, selection = capture["logprobs"]["values"], capture["selection"]
        kept = int(selection.get("k", selection.get("samples", vocab)))
        if values in LEVEL_STEPS:
            logger.warning(
                "cache %r stores log-probabilities as levels (%s), while its student starts at "
                "its own targets: rounding will be as large as the loss. Capture it with "
                "--logits-values float16",
                cache.name,
                values,
            )
        if kept < min(_FEW, vocab):
            logger.warning(
                "cache %r keeps at most %d entries a row, while its student starts at its own "
                "targets: what is left out will be as large as the loss. Capture it with "
                "--logits-top-k %d or more",
                cache.name,
                kept,
                _FEW,
            )


def warn_of_short_heads(needs: Needs, caches: Sequence[Cache]) -> None:
    """Warn where heads often hold less than the mass that the objective asks for."""
    for cache in caches if needs.mass else ():
        chosen = np.unique(np.linspace(0, len(cache) - 1, _LOOKED_AT).astype(np.int64))
        tails = np.concatenate([record.logits.tail for record in cache.read(chosen.tolist())])
        tails = tails[tails < 0]  # 0 on rows that were not captured
        short = float((-np.expm1(tails) < needs.mass).mean()) if len(tails) else 0.0
        if short > _OFTEN:
            logger.warning(
                "cache %r: about %.0f %% of its heads hold less than %g of the teacher's mass, "
                "which the objective asks for; such rows use all they have (metric short_rows). "
                "Capture with a larger --logits-top-k, or ask for less",
                cache.name,
                100 * short,
                needs.mass,
            )


def warn_of_samples(needs: Needs, dataset: CacheDataset) -> None:
    """Warn of samples that are left out or cut, and of routing that routes nothing."""
    if dataset.dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dataset.dropped.items())
        logger.warning("%d samples are trained on; left out: %s", len(dataset), reasons)
    if dataset.truncated:
        logger.warning("%d samples are cut to %s tokens", dataset.truncated, dataset.max_length)
    if needs.routed and len(set(dataset.cache_numbers.tolist())) == 1:
        name = dataset.caches[int(dataset.cache_numbers[0])].name
        logger.warning(
            "every sample learns from the cache %r: none is routed to the other. Name the domains "
            "of the expert with --expert-domains",
            name,
        )
