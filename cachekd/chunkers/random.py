"""Random chunks, as many as `phrases` finds: the control that shows whether phrases matter.

("Multi-Granularity Semantic Revision for Large Language Model Distillation", Table 5.) Words are
cut at places drawn with a seed from the text, so that equal texts are cut alike.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from cachekd.chunkers._words import phrases_of, words_of


class Random:
    """See the module's text."""

    def spans(self, text: str) -> list[tuple[int, int]]:
        """See `cachekd.chunkers.Chunker`."""
        words = words_of(text)
        if not words:
            return []
        seed = int.from_bytes(blake2b(text.encode(errors="replace"), digest_size=8).digest())
        cuts = np.random.default_rng(seed).choice(
            np.arange(1, len(words)), len(phrases_of(text)) - 1, replace=False
        )
        ends = [*np.sort(cuts).tolist(), len(words)]
        starts = [0, *ends[:-1]]
        return [
            (words[start][0], words[end - 1][1]) for start, end in zip(starts, ends, strict=True)
        ]


PLUGIN = Random
