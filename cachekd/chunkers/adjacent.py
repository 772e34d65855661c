"""The whole text as one phrase, so that every pair of neighbours counts.

("Multi-Granularity Semantic Revision for Large Language Model Distillation", Table 5: adjacent
tokens without chunking.)
"""

from __future__ import annotations


class Adjacent:
    """One span a text."""

    def spans(self, text: str) -> list[tuple[int, int]]:
        """See `cachekd.chunkers.Chunker`."""
        return [(0, len(text))] if text else []


PLUGIN = Adjacent
