"""What is allowed and yet worth a warning before a student is loaded, from small files alone.

In: opened caches and what the objective needs. Out: log lines.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cachekd.config import LEVEL_STEPS

if TYPE_CHECKING:
    from cachekd.objectives import Needs
    from cachekd.store.reader import Cache

logger = logging.getLogger(__name__)
_FEW = 64


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
