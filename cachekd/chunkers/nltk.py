"""Noun, verb and prepositional phrases: NLTK's part-of-speech tagger and a grammar over its tags.

Needs ``pip install 'cachekd[nltk]'`` and the tagger's data, which NLTK fetches when it is told to.
"""

from __future__ import annotations

from typing import Any

from cachekd.errors import ConfigError

_DATA = "averaged_perceptron_tagger_eng"
_GRAMMAR = r"""
    PP: {<IN|TO><PDT>?<DT|PRP\$|WP\$>?<CD|JJ.*|VBG|VBN>*<NN.*|PRP>+}
    NP: {<PDT>?<DT|PRP\$|WP\$>?<CD|JJ.*|VBN>*<NN.*>+}
    VP: {<MD>?<RB.*>*(<VB.*><RB.*|RP>*)+}
"""


class NLTK:
    """Tags words, and takes as phrases what the grammar matches."""

    def __init__(self) -> None:
        try:
            import nltk
        except ImportError as error:
            raise ConfigError(
                "chunker nltk: the package nltk is not installed. Install it with "
                "pip install 'cachekd[nltk]', or use --chunker phrases"
            ) from error
        try:
            nltk.pos_tag(["word"])
        except LookupError as error:
            raise ConfigError(
                f"chunker nltk: the tagger's data is missing. Fetch it with python -m "
                f"nltk.downloader {_DATA}, or use --chunker phrases"
            ) from error
        self._tag: Any = nltk.pos_tag
        self._words: Any = nltk.RegexpTokenizer(r"\w+(?:['\u2019\-]\w+)*|[^\w\s]")
        self._parser: Any = nltk.RegexpParser(_GRAMMAR)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """See `cachekd.chunkers.Chunker`."""
        places = list(self._words.span_tokenize(text))
        if not places:
            return []
        tagged = self._tag([text[start:end] for start, end in places])
        found, word = [], 0
        for part in self._parser.parse(tagged):
            length = len(part.leaves()) if hasattr(part, "leaves") else 1
            if hasattr(part, "leaves"):
                found.append((places[word][0], places[word + length - 1][1]))
            word += length
        return found


PLUGIN = NLTK
