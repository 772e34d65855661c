"""Phrases by rule: text is cut at punctuation, at line ends, and before English function words.

A stand-in for noun, verb and prepositional phrases that needs no tagger. Text of other languages is
cut at punctuation.
"""

from __future__ import annotations

from cachekd.chunkers._words import phrases_of


class Phrases:
    """See the module's text."""

    def spans(self, text: str) -> list[tuple[int, int]]:
        """See `cachekd.chunkers.Chunker`."""
        return phrases_of(text)


PLUGIN = Phrases
